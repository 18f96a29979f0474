/**
 * Stands in for `jsr:@std/assert`, so that the tests run where only npm can be
 * reached. The assertions are the real ones, as the npm package `deno-std`
 * carries them; it has no types, so those are written out here, as in the
 * original. `deno unlink ./tools/std-assert` goes back to the one on JSR.
 *
 * @module
 */
// @ts-expect-error The package ships no types.
import * as untyped from "deno-std/assert/mod.js";

// deno-lint-ignore no-explicit-any
const std: any = untyped;

/** Any class, abstract ones too. */
// deno-lint-ignore no-explicit-any
export type AnyConstructor = abstract new (...args: any[]) => any;

/** What `new` on `C` gives. */
export type GetConstructorType<C extends AnyConstructor> = InstanceType<C>;

/** A class of errors. */
// deno-lint-ignore no-explicit-any
type ErrorClass<E extends Error> = abstract new (...args: any[]) => E;

/** What every failed assertion throws. */
export interface AssertionError extends Error {
  readonly name: string;
}

/** The class of {@linkcode AssertionError}. */
export const AssertionError: new (
  message: string,
  options?: ErrorOptions,
) => AssertionError = std.AssertionError;

/** Fails unless `expr` is truthy. */
export const assert: (expr: unknown, msg?: string) => asserts expr = std.assert;

/** Fails unless `expr` is falsy. */
export const assertFalse: (expr: unknown, msg?: string) => asserts expr is
  | false
  | null
  | undefined
  | 0
  | 0n
  | "" = std.assertFalse;

/** Fails when `actual` is null or undefined. */
export const assertExists: <T>(
  actual: T,
  msg?: string,
) => asserts actual is NonNullable<T> = std.assertExists;

/** Fails unless both are deeply equal. */
export const assertEquals: <T>(actual: T, expected: T, msg?: string) => void =
  std.assertEquals;

/** Fails when both are deeply equal. */
export const assertNotEquals: <T>(
  actual: T,
  expected: T,
  msg?: string,
) => void = std.assertNotEquals;

/** Fails unless both are the same value, as `Object.is` has it. */
export const assertStrictEquals: <T>(
  actual: unknown,
  expected: T,
  msg?: string,
) => asserts actual is T = std.assertStrictEquals;

/** Fails when both are the same value, as `Object.is` has it. */
export const assertNotStrictEquals: <T>(
  actual: T,
  expected: T,
  msg?: string,
) => void = std.assertNotStrictEquals;

/** Fails unless the numbers are within `tolerance` of each other. */
export const assertAlmostEquals: (
  actual: number,
  expected: number,
  tolerance?: number,
  msg?: string,
) => void = std.assertAlmostEquals;

/** Fails unless `actual > expected`. */
export const assertGreater: <T>(actual: T, expected: T, msg?: string) => void =
  std.assertGreater;

/** Fails unless `actual >= expected`. */
export const assertGreaterOrEqual: <T>(
  actual: T,
  expected: T,
  msg?: string,
) => void = std.assertGreaterOrEqual;

/** Fails unless `actual < expected`. */
export const assertLess: <T>(actual: T, expected: T, msg?: string) => void =
  std.assertLess;

/** Fails unless `actual <= expected`. */
export const assertLessOrEqual: <T>(
  actual: T,
  expected: T,
  msg?: string,
) => void = std.assertLessOrEqual;

/** Fails unless `actual` is an instance of `expectedType`. */
export const assertInstanceOf: <T extends AnyConstructor>(
  actual: unknown,
  expectedType: T,
  msg?: string,
) => asserts actual is GetConstructorType<T> = std.assertInstanceOf;

/** Fails unless `error` is an error of that class and message. */
export const assertIsError: <E extends Error = Error>(
  error: unknown,
  ErrorClass?: ErrorClass<E>,
  msgMatches?: string | RegExp,
  msg?: string,
) => asserts error is E = std.assertIsError;

/** Fails unless `actual` matches `expected`. */
export const assertMatch: (
  actual: string,
  expected: RegExp,
  msg?: string,
) => void = std.assertMatch;

/** Fails when `actual` matches `expected`. */
export const assertNotMatch: (
  actual: string,
  expected: RegExp,
  msg?: string,
) => void = std.assertNotMatch;

/** Fails unless `actual` contains `expected`. */
export const assertStringIncludes: (
  actual: string,
  expected: string,
  msg?: string,
) => void = std.assertStringIncludes;

/** Fails unless `actual` contains every item of `expected`. */
export const assertArrayIncludes: <T>(
  actual: ArrayLike<T>,
  expected: ArrayLike<T>,
  msg?: string,
) => void = std.assertArrayIncludes;

/** Fails unless `actual` has at least the members of `expected`. */
export const assertObjectMatch: (
  // deno-lint-ignore no-explicit-any
  actual: Record<PropertyKey, any>,
  expected: Record<PropertyKey, unknown>,
  msg?: string,
) => void = std.assertObjectMatch;

/** The two faces of {@linkcode assertThrows}. */
export interface AssertThrows {
  /** Fails unless `fn` throws; gives what it threw. */
  (fn: () => unknown, msg?: string): unknown;
  /** Fails unless `fn` throws such an error; gives it. */
  <E extends Error = Error>(
    fn: () => unknown,
    ErrorClass: ErrorClass<E>,
    msgIncludes?: string,
    msg?: string,
  ): E;
}

/** Fails unless `fn` throws. */
export const assertThrows: AssertThrows = std.assertThrows;

/** The two faces of {@linkcode assertRejects}. */
export interface AssertRejects {
  /** Fails unless `fn` gives a promise that rejects; gives the reason. */
  (fn: () => PromiseLike<unknown>, msg?: string): Promise<unknown>;
  /** Fails unless `fn` gives a promise rejecting so; gives the error. */
  <E extends Error = Error>(
    fn: () => PromiseLike<unknown>,
    ErrorClass: ErrorClass<E>,
    msgIncludes?: string,
    msg?: string,
  ): Promise<E>;
}

/** Fails unless `fn` gives a promise that rejects. */
export const assertRejects: AssertRejects = std.assertRejects;

/** Fails always. */
export const fail: (msg?: string) => never = std.fail;

/** Fails always: for a branch that must not be reached. */
export const unreachable: (reason?: string) => never = std.unreachable;
