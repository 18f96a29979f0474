/** How a majority is asked, and what it says: `redlock.ts` says about what. */

import type { Backend, Verdict } from "../core/backend.ts";
import { type Clock, whenLate } from "../core/clock.ts";
import { LockBackendError, toFailure } from "../core/errors.ts";

/** How many of `count` servers have to agree: any two majorities share one. */
export function majorityOf(count: number): number {
  return Math.floor(count / 2) + 1;
}

/** What was heard of each server: its answer, why there is none, or nothing yet. */
export type Heard<Answer> = readonly (Answer | LockBackendError | undefined)[];

/** A question to all servers. */
export interface Question<Answer, Result> {
  ask(member: Backend, index: number): Promise<Answer>;
  /** Told of each answer as it comes, also after the result, or the limit. */
  onAnswer?(answer: Answer | LockBackendError, index: number): void;
  /**
   * The result as soon as it is certain, `undefined` before. Called after each
   * answer; the last time, when all have answered or failed, it has to decide.
   */
  decide(heard: Heard<Answer>): Result | undefined;
}

/**
 * Asks all at once, and gives the result as soon as there is one: who has not
 * answered by then is waited for no longer. Done for every lock: no object or
 * promise more than it takes.
 *
 * @param action What it is for, in messages: `acquire`.
 * @param limitMs After so long, who has said nothing counts as failed.
 * @throws What `decide` throws, as a rejection.
 */
export function askAll<Answer, Result>(
  members: readonly Backend[],
  clock: Clock,
  action: string,
  key: string,
  limitMs: number,
  question: Question<Answer, Result>,
): Promise<Result> {
  return new Promise((resolve, reject) => {
    const heard = new Array<Answer | LockBackendError | undefined>(
      members.length,
    ).fill(undefined);
    let isOver = false;
    let callOff: (() => void) | undefined;
    const note = (answer: Answer | LockBackendError, index: number) => {
      if (isOver || heard[index] !== undefined) return;
      heard[index] = answer;
      try {
        const result = question.decide(heard);
        if (result === undefined) return;
        resolve(result);
      } catch (error) {
        reject(error);
      }
      isOver = true;
      callOff?.();
    };
    const answered = (answer: Answer | LockBackendError, index: number) => {
      question.onAnswer?.(answer, index);
      note(answer, index);
    };
    const failed = (cause: unknown, index: number) => {
      answered(toFailure(action, key, cause), index);
    };
    const giveUp = () => {
      const why = `no answer from the server in ${Math.round(limitMs)} ms`;
      for (const index of members.keys()) {
        const message = `Cannot ${action} "${key}": ${why}`;
        note(new LockBackendError(key, message), index);
      }
    };
    // One timer for all: they are asked in the same moment.
    if (limitMs < Infinity) callOff = whenLate(clock, giveUp, limitMs);
    for (let index = 0; index < members.length; index++) {
      try {
        question.ask(members[index], index).then(
          (answer) => answered(answer, index),
          (cause) => failed(cause, index),
        );
      } catch (cause) {
        failed(cause, index);
      }
    }
  });
}

/** How many of them are as `is` says. */
export function count<T>(
  heard: readonly T[],
  is: (answer: T) => boolean,
): number {
  let sum = 0;
  for (const answer of heard) if (is(answer)) sum++;
  return sum;
}

/** Whether it is the failure of a server. */
export function isFailure(answer: unknown): answer is LockBackendError {
  return answer instanceof LockBackendError;
}

/** The answers among what was heard. */
export function answersIn<Answer>(heard: Heard<Answer>): Answer[] {
  const answers: Answer[] = [];
  for (const answer of heard) {
    if (answer !== undefined && !isFailure(answer)) answers.push(answer);
  }
  return answers;
}

/** What at least a majority of `count` reaches: the k-th largest, or 0. */
export function majorityReaches(
  values: readonly number[],
  count: number,
): number {
  const sorted = [...values].sort((a, b) => b - a);
  return sorted[majorityOf(count) - 1] ?? 0;
}

/** That too few could be asked: one cause for each server that failed. */
export function failureOf(
  action: string,
  key: string,
  heard: Heard<unknown>,
): LockBackendError {
  const errors: LockBackendError[] = [];
  const numbers: number[] = [];
  for (const [index, answer] of heard.entries()) {
    if (!isFailure(answer)) continue;
    errors.push(answer);
    numbers.push(index + 1);
  }
  const last = numbers.pop();
  const who = numbers.length === 0
    ? `server ${last}`
    : `servers ${numbers.join(", ")} and ${last}`;
  const message = `Cannot ${action} "${key}": ${who} of ${heard.length} failed`;
  const [{ reply }] = errors;
  const isCommon = errors.every((error) => error.reply === reply);
  return new LockBackendError(
    key,
    message,
    new AggregateError(errors, `${who} of ${heard.length} failed`),
    isCommon ? reply : undefined,
  );
}

/**
 * What a majority says of a hold, as soon as that is certain: `done` by so many;
 * lost, where so many say it is not ours that the others are no majority; an
 * error, where failures leave it open.
 */
export function verdictOf(
  action: string,
  key: string,
  heard: Heard<Verdict>,
): Verdict | LockBackendError | undefined {
  const majority = majorityOf(heard.length);
  const most = heard.length - majority;
  let [done, taken, absent, unclear, failed] = [0, 0, 0, 0, 0];
  for (const answer of heard) {
    if (answer === "done") done++;
    else if (answer === "taken") taken++;
    else if (answer === "absent") absent++;
    else if (answer === "unclear") unclear++;
    else if (answer !== undefined) failed++;
  }
  const open = heard.length - done - taken - absent - unclear - failed;
  if (done >= majority) return "done";
  if (taken + absent > most) return taken >= absent ? "taken" : "absent";
  if (done + open >= majority || taken + absent + open > most) return undefined;
  if (done + unclear >= majority || failed === 0) return "unclear";
  return failureOf(action, key, heard);
}
