/** Who is to be told when a signal aborts. */

/** The one listener of a signal, and for whom it was added. */
interface Listener {
  readonly callbacks: Set<() => void>;
  readonly tell: () => void;
}

const listeners = new WeakMap<AbortSignal, Listener>();

/**
 * Calls `callback` when `signal` aborts, unless what it returns is called before.
 *
 * One listener for all of a signal: a program has one to shut down by, and any
 * number of locks that it may end the waiting for. Of more than ten Node warns.
 */
export function onAbort(signal: AbortSignal, callback: () => void): () => void {
  const { callbacks, tell } = listeners.get(signal) ?? listen(signal);
  callbacks.add(callback);
  return () => {
    if (!callbacks.delete(callback) || callbacks.size > 0) return;
    listeners.delete(signal);
    signal.removeEventListener("abort", tell);
  };
}

function listen(signal: AbortSignal): Listener {
  const callbacks = new Set<() => void>();
  const tell = () => {
    listeners.delete(signal);
    // Who is called off by another meanwhile is not told.
    for (const callback of callbacks) callback();
  };
  const listener = { callbacks, tell };
  listeners.set(signal, listener);
  signal.addEventListener("abort", tell, { once: true });
  return listener;
}
