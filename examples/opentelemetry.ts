/**
 * Locks as OpenTelemetry sees them: a span for each hold and each refusal, and
 * what a dashboard is made of: how long locks are waited for and held, how
 * often they are refused and lost.
 *
 *     REDIS_URL=redis://… deno run -A examples/opentelemetry.ts
 *
 * It prints what an exporter would send. Without REDIS_URL it locks in memory().
 */
import {
  type Attributes,
  type Meter,
  type Span,
  SpanStatusCode,
  type Tracer,
} from "@opentelemetry/api";
import {
  acquireLock,
  type LockEvent,
  lockKey,
  type LockTarget,
  redis,
  withLock,
} from "@dreamer/utils/lock";
import { memory } from "@dreamer/utils/lock/memory";
import process from "node:process";
import { fileURLToPath } from "node:url";

/** Where to report to. */
export interface Telemetry {
  tracer: Tracer;
  meter: Meter;
  /**
   * What kind of lock a key is, for metrics: each value is a time series of its
   * own, so never the key itself. By default the prefix given to `lockKey()`.
   */
  kindOf?: (key: string) => string;
}

/** A hold that nobody has heard the end of. */
interface OpenHold {
  span: Span;
  /** Milliseconds since 1970. */
  since: number;
}

/** Seconds, from a round trip to a batch job. */
const explicitBucketBoundaries = [
  ...[0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5],
  ...[1, 2, 5, 10, 30, 60, 300, 1800],
];

/** An observer that reports to OpenTelemetry: the `onEvent` of a backend. */
export function telemetry(
  { tracer, meter, kindOf = (key) => key.split(":")[1] ?? "other" }: Telemetry,
): (event: LockEvent) => void {
  const seconds = { unit: "s", advice: { explicitBucketBoundaries } };
  const acquiring = meter.createHistogram("lock.acquire.duration", {
    ...seconds,
    description: "From the call to the grant or refusal",
  });
  const holding = meter.createHistogram("lock.hold.duration", {
    ...seconds,
    description: "From the grant to the release or loss",
  });
  const refusals = meter.createCounter("lock.refusals");
  const losses = meter.createCounter("lock.losses");
  const failures = meter.createCounter("lock.failures", {
    description: "Extensions and releases without an answer",
  });

  // An event does not say of which hold it is. But a key has one at a time.
  const open = new Map<string, OpenHold>();

  /** Ends the span of the key's hold, `heldMs` after it began. */
  function end(key: string, outcome: string, heldMs?: number): void {
    const hold = open.get(key);
    if (hold === undefined) return; // Ended before: lost, and then released.
    open.delete(key);
    hold.span.setAttribute("lock.outcome", outcome);
    hold.span.end(heldMs === undefined ? Date.now() : hold.since + heldMs);
    if (heldMs === undefined) return;
    holding.record(heldMs / 1000, { "lock.kind": kindOf(key), outcome });
  }

  return (event) => {
    const { key, label, type } = event;
    const kind: Attributes = { "lock.kind": kindOf(key) };
    const attributes: Attributes = { ...kind, "lock.key": key };
    if (label !== undefined) attributes["lock.label"] = label;
    const span = open.get(key)?.span;

    switch (event.type) {
      case "acquired": {
        acquiring.record(event.tookMs / 1000, { ...kind, outcome: type });
        // Handed to another process, and now it is back.
        end(key, "unknown");
        const since = Date.now() - event.tookMs;
        if (event.fencingToken !== undefined) {
          attributes["lock.fencing_token"] = event.fencingToken;
        }
        // Of the span that is active here: the request that wants the lock.
        const options = { startTime: since, attributes };
        open.set(key, { span: tracer.startSpan("lock.hold", options), since });
        break;
      }
      case "refused": {
        acquiring.record(event.tookMs / 1000, { ...kind, outcome: type });
        refusals.add(1, kind);
        // No error: that somebody else has it is what a lock is for.
        const startTime = Date.now() - event.tookMs;
        if (event.retryAfterMs !== undefined) {
          attributes["lock.retry_after_ms"] = event.retryAfterMs;
        }
        tracer.startSpan("lock.refused", { startTime, attributes })
          .end(startTime + event.tookMs);
        break;
      }
      case "extended":
        span?.addEvent("lock.extended", { "lock.ttl_ms": event.ttlMs });
        break;
      case "extend-failed":
        // Not lost yet: the next try may well succeed.
        failures.add(1, { ...kind, operation: "extend" });
        span?.recordException(event.error);
        break;
      case "lost":
        losses.add(1, { ...kind, reason: event.reason });
        span?.setStatus({
          code: SpanStatusCode.ERROR,
          message: event.error.message,
        });
        end(key, event.reason, event.heldMs);
        break;
      case "released":
        end(key, type, event.heldMs);
        break;
      case "release-failed":
        // Others may have to wait for the end of the lease, but no longer.
        failures.add(1, { ...kind, operation: "release" });
        span?.recordException(event.error as Error);
        span?.setStatus({
          code: SpanStatusCode.ERROR,
          message: "The release failed",
        });
        end(key, type, event.heldMs);
        break;
    }
  };
}

/** Something to look at: a hold, a refusal, and a hold that is lost. */
export async function showcase(on: LockTarget): Promise<void> {
  const key = lockKey("report", 7);
  await withLock(on, key, async (lock) => {
    await lock.extend();
    await acquireLock(on, key, { throwOnFail: false });
  }, { label: `process ${process.pid}`, fencing: true });
  await acquireLock(on, lockKey("forgotten", 1), { ttl: 0.05 });
  await new Promise((done) => setTimeout(done, 100));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { BasicTracerProvider, ConsoleSpanExporter, SimpleSpanProcessor } =
    await import("@opentelemetry/sdk-trace-base");
  const {
    ConsoleMetricExporter,
    MeterProvider,
    PeriodicExportingMetricReader,
  } = await import("@opentelemetry/sdk-metrics");

  const spans = new BasicTracerProvider({
    spanProcessors: [new SimpleSpanProcessor(new ConsoleSpanExporter())],
  });
  const metrics = new MeterProvider({
    readers: [
      new PeriodicExportingMetricReader({
        exporter: new ConsoleMetricExporter(),
      }),
    ],
  });
  const onEvent = telemetry({
    tracer: spans.getTracer("locks"),
    meter: metrics.getMeter("locks"),
  });

  const url = process.env.REDIS_URL;
  if (url) {
    const { Redis } = await import("ioredis");
    const client = new Redis(url);
    try {
      await showcase(redis(client, { onEvent }));
    } finally {
      client.disconnect();
    }
  } else {
    await showcase(memory({ onEvent }));
  }
  // Both tell what they have been keeping back.
  await metrics.shutdown();
  await spans.shutdown();
}
