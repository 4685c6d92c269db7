// bullmq and pg-boss for b_recovery.py; the same commands as b_jobs.py: node b_jobs.js prepare|enqueue|worker
const { spawn } = require('child_process');
const fs = require('fs');
const { B_PEER: PEER, B_VARIANT, B_URL: URL_, B_LOG: LOG, PEERS_HOME } = process.env;
const FAST = B_VARIANT === 'best';
const lib = (name) => require(`${PEERS_HOME}/node/node_modules/${name}`);

function hold() {
  return new Promise((resolve) => {
    const p = spawn('sleep', ['300'], { stdio: 'ignore' });
    fs.appendFileSync(LOG, `${process.pid} ${p.pid}\n`);
    p.on('exit', resolve);
  });
}

async function bullmq(cmd) {
  const { Queue, Worker } = lib('bullmq');
  const u = new URL(URL_);
  const connection = { host: u.hostname, port: +u.port, db: +u.pathname.slice(1), maxRetriesPerRequest: null };
  if (cmd === 'enqueue') { const q = new Queue('bench', { connection }); await q.add('hold', {}); await q.close(); }
  if (cmd === 'worker') {
    const fast = FAST ? { lockDuration: 2000, stalledInterval: 1000, maxStalledCount: 10 } : {};
    new Worker('bench', hold, { connection, ...fast });
  }
}

async function pgboss(cmd) {
  const PgBoss = lib('pg-boss');
  const boss = new PgBoss({ connectionString: URL_, ...(FAST ? { maintenanceIntervalSeconds: 1 } : {}) });
  boss.on('error', (e) => console.error(e));
  await boss.start();
  if (cmd === 'prepare') { await boss.createQueue('bench'); await boss.stop(); process.exit(0); }
  if (cmd === 'enqueue') { await boss.send('bench', {}, FAST ? { expireInSeconds: 5, retryLimit: 10 } : {}); process.exit(0); }
  if (cmd === 'worker') await boss.work('bench', FAST ? { pollingIntervalSeconds: 0.5 } : {}, hold);
}

({ bullmq, pgboss })[PEER](process.argv[2]).catch((e) => { console.error(e); process.exit(1); });
