/** What the OpenTelemetry example makes of locks, seen through its exporters. */
import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertFalse,
  assertMatch,
} from "@std/assert";
import { SpanStatusCode } from "@opentelemetry/api";
import {
  AggregationTemporality,
  type Histogram,
  InMemoryMetricExporter,
  MeterProvider,
  PeriodicExportingMetricReader,
} from "@opentelemetry/sdk-metrics";
import {
  BasicTracerProvider,
  InMemorySpanExporter,
  type ReadableSpan,
  SimpleSpanProcessor,
} from "@opentelemetry/sdk-trace-base";

import {
  acquireLock,
  type Backend,
  LockBackendError,
  type LockEvent,
  lockKey,
  withLock,
} from "@dreamer/utils/lock";
import { diagnostics, lockChannels } from "@dreamer/utils/lock/diagnostics";
import { memory } from "@dreamer/utils/lock/memory";
import { subscribe, unsubscribe } from "node:diagnostics_channel";
import { telemetry } from "../../examples/opentelemetry.ts";
import { FakeClock } from "../support/fake_clock.ts";
import { spawnScript } from "../support/process.ts";
import { redisMissing, startRedis } from "../support/redis_server.ts";
import { test } from "../support/test.ts";

const KEY = lockKey("report", 7);
const KIND = { "lock.kind": "report" };

/** An observer, and what has come out of it. */
function open() {
  const exporter = new InMemorySpanExporter();
  const spanProcessors = [new SimpleSpanProcessor(exporter)];
  const spans = new BasicTracerProvider({ spanProcessors });
  const metricExporter = new InMemoryMetricExporter(
    AggregationTemporality.CUMULATIVE,
  );
  const reader = new PeriodicExportingMetricReader({
    exporter: metricExporter,
  });
  const metrics = new MeterProvider({ readers: [reader] });
  const onEvent = telemetry({
    tracer: spans.getTracer("test"),
    meter: metrics.getMeter("test"),
  });
  return {
    onEvent,
    /** The spans that have ended. */
    async spans(): Promise<ReadableSpan[]> {
      await spans.forceFlush();
      return exporter.getFinishedSpans();
    },
    /** What was measured by this name: attributes, and a value or the like. */
    async points(name: string) {
      metricExporter.reset();
      await metrics.forceFlush();
      return metricExporter.getMetrics()
        .flatMap(({ scopeMetrics }) => scopeMetrics)
        .flatMap(({ metrics }) => metrics)
        .filter(({ descriptor }) => descriptor.name === name)
        .flatMap(({ dataPoints }) =>
          dataPoints.map(({ attributes, value }) => ({ attributes, value }))
        );
    },
    async [Symbol.asyncDispose]() {
      await metrics.shutdown();
      await spans.shutdown();
    },
  };
}

/** The length of a span in milliseconds. */
const lengthOf = ({ duration: [s, ns] }: ReadableSpan) => s * 1e3 + ns / 1e6;

/** A backend out of reach, but for acquiring. */
function unanswered(on: Backend): void {
  const fail = () => Promise.reject(new LockBackendError(KEY, "no answer"));
  Object.assign(on, { extend: fail, release: fail });
}

test("otel: a hold is a span, as long as the hold", async () => {
  await using seen = open();
  const clock = new FakeClock();
  const on = memory({ clock, onEvent: seen.onEvent });
  let token: number | undefined;
  await withLock(on, KEY, async (lock) => {
    token = lock.fencingToken;
    assertEquals(await seen.spans(), [], "not over yet");
    await clock.advance(12_000);
  }, { ttl: 30, label: "web-3", fencing: true });
  const [span, ...more] = await seen.spans();
  assertEquals(more, []);
  assertEquals(span.name, "lock.hold");
  assertEquals(span.attributes, {
    ...KIND,
    "lock.key": KEY,
    "lock.label": "web-3",
    "lock.fencing_token": token,
    "lock.outcome": "released",
  });
  assertAlmostEquals(lengthOf(span), 12_000, 0.01);
  assertEquals(span.status.code, SpanStatusCode.UNSET);
  assertEquals(span.events.map(({ name, attributes }) => [name, attributes]), [
    ["lock.extended", { "lock.ttl_ms": 30_000 }],
  ]);
  const [{ attributes, value }] = await seen.points("lock.hold.duration");
  assertEquals(attributes, { ...KIND, outcome: "released" });
  assertEquals([(value as Histogram).count, (value as Histogram).sum], [1, 12]);
});

test("otel: a refusal is counted, and a span without an error", async () => {
  await using seen = open();
  const on = memory({ onEvent: seen.onEvent });
  await using _ = await acquireLock(on, KEY, { ttl: 5 });
  for (let i = 0; i < 3; i++) {
    await acquireLock(on, KEY, { throwOnFail: false });
  }
  const spans = await seen.spans();
  assertEquals(spans.map(({ name }) => name), Array(3).fill("lock.refused"));
  const [{ attributes, status }] = spans;
  assertEquals(status.code, SpanStatusCode.UNSET);
  const left = Number(attributes["lock.retry_after_ms"]);
  assert(left > 0 && left <= 5_000);
  assertEquals(await seen.points("lock.refusals"), [
    { attributes: KIND, value: 3 },
  ]);
  const points = await seen.points("lock.acquire.duration");
  assertEquals(
    points.map(({ attributes, value }) => [
      attributes.outcome,
      (value as Histogram).count,
    ]),
    [["acquired", 1], ["refused", 3]],
  );
});

test("otel: a lost lock is an error, with the reason, and counted once", async () => {
  await using seen = open();
  const clock = new FakeClock();
  const on = memory({ clock, onEvent: seen.onEvent });
  const lock = await acquireLock(on, KEY, { ttl: 10 });
  // Released between the loss and the end on the server: told as well.
  await clock.advance(9_950);
  await lock.release();
  const [span, ...more] = await seen.spans();
  assertEquals(more, []);
  assertAlmostEquals(lengthOf(span), 9_898, 0.01);
  assertEquals(span.attributes["lock.outcome"], "expired");
  assertEquals(span.status.code, SpanStatusCode.ERROR);
  assertMatch(span.status.message ?? "", /its time ran out/);
  assertEquals(await seen.points("lock.losses"), [
    { attributes: { ...KIND, reason: "expired" }, value: 1 },
  ]);
  const [{ value }] = await seen.points("lock.hold.duration");
  assertEquals((value as Histogram).count, 1);
});

test("otel: what fails is an exception of the span, and counted", async () => {
  await using seen = open();
  const clock = new FakeClock();
  const on = memory({ clock, onEvent: seen.onEvent });
  const lock = await acquireLock(on, KEY, { ttl: 10 });
  unanswered(on);
  await lock.extend().catch(() => {});
  await clock.advance(1_000);
  await lock.release().catch(() => {});
  const [{ attributes, events, status }] = await seen.spans();
  assertEquals(attributes["lock.outcome"], "release-failed");
  assertEquals(status.code, SpanStatusCode.ERROR);
  assertEquals(events.map(({ name }) => name), ["exception", "exception"]);
  assertEquals(await seen.points("lock.failures"), [
    { attributes: { ...KIND, operation: "extend" }, value: 1 },
    { attributes: { ...KIND, operation: "release" }, value: 1 },
  ]);
  const owner = lock.owner;
  assertFalse(JSON.stringify([attributes, events]).includes(owner));
});

test("otel: a hold that went away untold ends when the key is next held", async () => {
  await using seen = open();
  const on = memory({ onEvent: seen.onEvent });
  const json = (await acquireLock(on, KEY)).toJSON();
  await on.release(json); // By the process that it was handed to.
  await withLock(on, KEY, () => {});
  const outcomes = (await seen.spans())
    .map(({ attributes }) => attributes["lock.outcome"]);
  assertEquals(outcomes, ["unknown", "released"]);
  const [{ value }] = await seen.points("lock.hold.duration");
  assertEquals((value as Histogram).count, 1, "nobody knows how long");
});

test("otel: events come by way of channels just as well", async () => {
  await using seen = open();
  const listen = (message: unknown) => seen.onEvent(message as LockEvent);
  const names = Object.values(lockChannels);
  names.forEach((name) => subscribe(name, listen));
  await withLock(memory({ onEvent: diagnostics() }), KEY, () => {});
  names.forEach((name) => unsubscribe(name, listen));
  await withLock(memory({ onEvent: diagnostics() }), KEY, () => {});
  assertEquals((await seen.spans()).length, 1);
});

const missing = redisMissing();
const where = missing ? ["memory()"] : ["memory()", "a real server"];
if (missing) test.unavailable("otel: the program on a real server", missing);
for (const place of where) {
  test(`otel: the program prints spans and metrics, of ${place}`, async () => {
    const server = place === "memory()" ? undefined : await startRedis();
    try {
      const program = new URL(
        "../../examples/opentelemetry.ts",
        import.meta.url,
      );
      const env = { REDIS_URL: server?.url ?? "" };
      await using script = spawnScript(program, [], env);
      const { code } = await script.exited;
      // What it prints is no JSON, so that it is kept with stderr.
      const output = script.stderr;
      assertEquals(code, 0, output);
      for (const name of ["lock.hold", "lock.refused", "lock.losses"]) {
        assert(output.includes(name), `no ${name} in ${output}`);
      }
      assertMatch(output, /"?lock\.outcome"?'?: ['"]expired['"]/);
    } finally {
      await server?.stop();
    }
  });
}
