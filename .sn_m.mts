import { Redis } from "ioredis";
import { acquireLock } from "/work/main/mod.ts";
import { startRedis } from "/work/main/tests/support/redis_server.ts";
declare const gc: () => void;
const s = await startRedis(); const r = new Redis(s.url);
const w = async () => { for (let i=0;i<2;i++){gc(); await new Promise(d=>setTimeout(d,5));} return process.memoryUsage().heapUsed; };
  const n = 10000;
  const keys: string[] = JSON.parse(JSON.stringify(Array.from({length:n},(_, i)=>`bench:held:${crypto.randomUUID()}:${i}`)));
  const a = await w();
  const locks: any[] = [];
  for (let i=0;i<n;i+=100) locks.push(...await Promise.all(keys.slice(i,i+100).map(k=>acquireLock(r,k,{ttl:6,autoExtend:true}))));
  const t0 = performance.now(); const row = [];
  while (performance.now() - t0 < 30000) { await new Promise(d=>setTimeout(d,300)); row.push(((performance.now()-t0)/1000).toFixed(1) + ":" + ((await w()-a)/n).toFixed(0)); }
  console.log(row.join(" "));
  if (process.argv[2]) { const v8 = await import("node:v8"); v8.writeHeapSnapshot(process.argv[2]); }
  for (let i=0;i<n;i+=100) await Promise.all(locks.slice(i,i+100).map(l=>l.release()));
r.disconnect(); await s.stop();
