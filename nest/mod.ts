/**
 * Distributed locks as providers of a NestJS application, on
 * `@dreamer/utils/lock`, with the names of `@trellisorg/distributed-lock/nest`.
 *
 * @example
 * ```ts
 * import { Injectable, Module } from "@nestjs/common";
 * import { NestFactory } from "@nestjs/core";
 * import { DistributedLockModule, InjectLock } from "@dreamer/lock-nest";
 * import {
 *   type DistributedLock,
 *   redisMutexLockAdapter,
 * } from "@dreamer/utils/lock/redis-mutex";
 * import { memory } from "@dreamer/utils/lock/memory";
 *
 * class MyService {
 *   constructor(readonly lock: DistributedLock) {}
 * }
 * Injectable()(MyService);
 * // With decorator syntax: constructor(@InjectLock("redis") readonly lock …)
 * InjectLock("redis")(MyService, undefined, 0);
 *
 * class AppModule {}
 * Module({
 *   imports: [
 *     DistributedLockModule.register({
 *       name: "redis",
 *       config: { client: memory() }, // or { host: "localhost", port: 6379 }
 *       adapter: redisMutexLockAdapter,
 *     }),
 *   ],
 *   providers: [MyService],
 * })(AppModule);
 *
 * const app = await NestFactory.createApplicationContext(AppModule, {
 *   logger: false,
 * });
 * await app.get(MyService).lock.withLock("my-resource", async () => {});
 * await app.close();
 * ```
 *
 * @module
 */

import {
  type DynamicModule,
  type FactoryProvider,
  Inject,
  Module,
  Optional,
  type Provider,
} from "@nestjs/common";

import {
  DistributedLock,
  type RedisMutexLockOptions,
} from "@dreamer/utils/lock/redis-mutex";

export { DistributedLock };

type Injectable = NonNullable<FactoryProvider["inject"]>;
type Importable = NonNullable<DynamicModule["imports"]>;

/** The lock that has no name of its own. */
const ROOT = "root";
/** The locks that one import of the module made, to be closed with it. */
const MADE = Symbol("the locks of this module");

/** What a lock is made of. */
export interface LockRegistration<Config = RedisMutexLockOptions> {
  /** What the adapter makes it of. */
  config: Config;
  /** Makes it: once in an application, `redisMutexLockAdapter` for example. */
  adapter: (config: Config) => DistributedLock;
  /** What it is injected by. Default: `root`. */
  name?: string | undefined;
}

/** How the application finds out what a lock is made of, as it starts. */
export interface AsyncLockRegistration<Config = RedisMutexLockOptions> {
  /** What it is injected by. Default: `root`. */
  name?: string | undefined;
  /** Called with what `inject` names; a `name` in what it gives is ignored. */
  useFactory: (
    ...dependencies: never[]
  ) => LockRegistration<Config> | Promise<LockRegistration<Config>>;
  /** What the factory needs: classes, tokens, or `{ token, optional }`. */
  inject?: (string | symbol | object)[] | undefined;
  /** The modules that provide it: classes, or what they are made by. */
  imports?: (object | Promise<object>)[] | undefined;
}

/** A lock like another one. */
export interface InheritedLockRegistration<Config = RedisMutexLockOptions> {
  /** What it is injected by. */
  name: string;
  /** The name of the other. Default: `root`. */
  inheritFrom?: string | undefined;
  /** What is different in its config. */
  config?: Partial<Config> | undefined;
}

/**
 * The token by which the lock so named is provided: for `app.get()`, factories,
 * and tests that put another in its place.
 *
 * @param name Default: `root`.
 *
 * @example
 * ```ts
 * import { getLockToken } from "@dreamer/lock-nest";
 *
 * const provider = {
 *   provide: "REPORTS",
 *   useFactory: (lock: unknown) => ({ lock }),
 *   inject: [getLockToken("redis")],
 * };
 * if (provider.inject[0] === getLockToken()) throw new Error("the same");
 * ```
 */
export function getLockToken(name: string = ROOT): string {
  return `@trellisorg/distributed-lock:${name}DistributedLock:token`;
}

function getConfigToken(name: string): string {
  return `@trellisorg/distributed-lock:config:${name}`;
}

/**
 * Injects the lock so named, as a parameter of a constructor or a property.
 *
 * @param name Default: `root`.
 *
 * @example
 * ```ts
 * import { InjectLock } from "@dreamer/lock-nest";
 *
 * // constructor(@InjectLock("redis") private readonly lock: DistributedLock)
 * class MyService {
 *   constructor(readonly lock: unknown) {}
 * }
 * InjectLock("redis")(MyService, undefined, 0);
 * ```
 */
export function InjectLock(
  name: string = ROOT,
): ParameterDecorator & PropertyDecorator {
  return Inject(getLockToken(name));
}

/**
 * Provides locks to the whole application, each by its name, and the one named
 * `root` by the class {@linkcode DistributedLock} too.
 *
 * As the application shuts down, locks that can be closed are: a `RedisMutex`
 * then ends the connection that it opened itself.
 *
 * @example Two locks, the second like the first
 * ```ts
 * import { DistributedLockModule } from "@dreamer/lock-nest";
 * import { redisMutexLockAdapter } from "@dreamer/utils/lock/redis-mutex";
 *
 * const imports = [
 *   DistributedLockModule.register({
 *     name: "redis",
 *     config: { client: { host: "localhost", port: 6379 } },
 *     adapter: redisMutexLockAdapter,
 *   }),
 *   DistributedLockModule.inherit({
 *     name: "redis2",
 *     inheritFrom: "redis",
 *     config: { lockPrefix: "redis2" },
 *   }),
 * ];
 * if (imports.some((module) => !module.global)) throw new Error();
 * ```
 */
export class DistributedLockModule {
  readonly #locks: readonly DistributedLock[];

  /** Called by NestJS, with the locks that this import made. */
  constructor(locks: readonly DistributedLock[] = []) {
    this.#locks = locks;
  }

  /**
   * Locks whose config is known.
   *
   * @throws {TypeError} Two have the same name, or one is not complete, or none
   * at all.
   */
  static register<Config = RedisMutexLockOptions>(
    locks: LockRegistration<Config> | LockRegistration<Config>[],
  ): DynamicModule {
    return moduleOf(locks, (registration, name) => {
      check(registration, name);
      return { provide: getConfigToken(name), useValue: registration };
    });
  }

  /**
   * Locks whose config is asked for as the application starts; one that is not
   * complete fails the start.
   *
   * @throws {TypeError} Two have the same name, or one has no factory.
   */
  static registerAsync<Config = RedisMutexLockOptions>(
    locks: AsyncLockRegistration<Config> | AsyncLockRegistration<Config>[],
  ): DynamicModule {
    const module = moduleOf(locks, ({ useFactory, inject = [] }, name) => {
      if (typeof useFactory !== "function") {
        refuse(name, "useFactory must be a function");
      }
      return {
        provide: getConfigToken(name),
        inject: inject as Injectable,
        useFactory: async (...dependencies: never[]) => {
          const registration = await useFactory(...dependencies);
          check(registration, name);
          return registration;
        },
      };
    });
    const imports = listOf(locks).flatMap(({ imports = [] }) => imports);
    return { ...module, imports: imports as Importable };
  }

  /**
   * Locks like others, wherever in the application those are registered: made
   * by their adapter, of their config with some of it replaced. Each is a lock
   * of its own, with a connection of its own where its config asks for one.
   *
   * An application in which the other is missing does not start.
   *
   * @throws {TypeError} Two have the same name, or one is to be like itself.
   */
  static inherit<Config = RedisMutexLockOptions>(
    locks:
      | InheritedLockRegistration<Config>
      | InheritedLockRegistration<Config>[],
  ): DynamicModule {
    return moduleOf(locks, ({ inheritFrom = ROOT, config }, name) => {
      if (inheritFrom === name) {
        refuse(name, "it must inherit from another than itself");
      }
      return {
        provide: getConfigToken(name),
        // Optional, or the error would speak of tokens and not of names.
        inject: [{ token: getConfigToken(inheritFrom), optional: true }],
        useFactory: (other?: LockRegistration<Config>) => {
          if (other === undefined) missing(name, inheritFrom);
          return { ...other, name, config: { ...other.config, ...config } };
        },
      };
    });
  }

  /** Called by NestJS as the application shuts down: closes the locks. */
  async onApplicationShutdown(): Promise<void> {
    await Promise.all(this.#locks.map((lock) => {
      const { close } = lock as { close?: () => unknown };
      return typeof close === "function" ? close.call(lock) : undefined;
    }));
  }
}
Module({})(DistributedLockModule);
Inject(MADE)(DistributedLockModule, undefined, 0);
// Who imports the bare class gets a module without locks.
Optional()(DistributedLockModule, undefined, 0);

function listOf<T>(one: T | T[]): T[] {
  return Array.isArray(one) ? one : [one];
}

/** One import of the module: all of its locks, each made once of its config. */
function moduleOf<Registration extends { name?: string | undefined }>(
  registrations: Registration | Registration[],
  configOf: (registration: Registration, name: string) => Provider,
): DynamicModule {
  const names = new Set<string>();
  const shared: Provider[] = [];
  for (const registration of listOf(registrations)) {
    if (typeof registration !== "object" || registration === null) {
      // Its kind only: a URL in the wrong place has a password in it.
      const kind = registration === null ? "null" : typeof registration;
      throw new TypeError(
        `Cannot provide a lock as its registration must be an object: it is ${kind}`,
      );
    }
    const { name = ROOT } = registration;
    if (typeof name !== "string") refuse(name, "name must be a string");
    if (names.has(name)) refuse(name, "there must be one of that name");
    names.add(name);
    shared.push(configOf(registration, name), {
      provide: getLockToken(name),
      inject: [getConfigToken(name)],
      useFactory: ({ adapter, config }: LockRegistration<unknown>) =>
        adapter(config),
    });
    if (name === ROOT) {
      shared.push({
        provide: DistributedLock,
        useExisting: getLockToken(name),
      });
    }
  }
  const made = {
    provide: MADE,
    inject: [...names].map((name) => getLockToken(name)),
    useFactory: (...locks: DistributedLock[]) => locks,
  };
  return {
    module: DistributedLockModule,
    global: true,
    providers: [...shared, made],
    exports: shared.map((provider) =>
      typeof provider === "function" ? provider : provider.provide
    ),
  };
}

/** Fails for what an adapter could not be called with. */
function check(
  registration: { adapter?: unknown; config?: unknown } | undefined,
  name: string,
): void {
  if (typeof registration?.adapter !== "function") {
    refuse(name, "adapter must be a function");
  }
  if (registration.config === undefined || registration.config === null) {
    refuse(name, "there must be a config");
  }
}

function refuse(name: unknown, rule: string): never {
  throw new TypeError(`Cannot provide the lock "${name}" as ${rule}`);
}

function missing(name: string, inheritFrom: string): never {
  throw new Error(
    `Cannot provide the lock "${name}" as it inherits from "${inheritFrom}", ` +
      "and no lock of that name is registered" +
      (inheritFrom === ROOT
        ? ": register one without a name, or say another by inheritFrom"
        : ""),
  );
}
