// Worker threads that hash, compress and sort, beside the pool that libuv has for files and zlib. Until the end of its
// input; then prints `rounds N wrong N lost N`.
'use strict';
const { Worker, isMainThread, parentPort, workerData } = require('worker_threads');
const crypto = require('crypto');
const fs = require('fs');
const zlib = require('zlib');
const WORKERS = 4;

if (isMainThread) {
    const shared = new SharedArrayBuffer(4);
    const told = { rounds: 0, wrong: 0, lost: 0 };
    let left = WORKERS;
    for (let seed = 1; seed <= WORKERS; seed++) {
        const worker = new Worker(__filename, { workerData: { seed, shared } });
        let received = 0;
        worker.on('message', (message) => {
            if (message.digest) {
                const sum = crypto.createHash('sha256').update(message.buffer).digest('hex');
                if (sum !== message.digest)
                    told.wrong++;
                received++;
                return;
            }
            told.rounds += message.rounds;
            told.wrong += message.wrong;
            told.lost += message.rounds - received;
            if (--left === 0) {
                console.log(`rounds ${told.rounds} wrong ${told.wrong} lost ${told.lost}`);
                process.exit(0);
            }
        });
        worker.on('error', (error) => { throw error; });
    }
    console.log('ready');
    process.stdin.on('data', () => {});
    process.stdin.on('end', () => Atomics.store(new Int32Array(shared), 0, 1));
} else {
    const finished = new Int32Array(workerData.shared);
    let rounds = 0, wrong = 0, expected = null;
    const round = () => {
        let state = workerData.seed;
        const values = new Float64Array(20000);
        for (let i = 0; i < values.length; i++) {
            state = (Math.imul(state, 1103515245) + 12345) >>> 0;
            values[i] = state / 7;
        }
        values.sort();
        for (let i = 1; i < values.length; i++)
            if (values[i - 1] > values[i])
                wrong++;
        const buffer = Buffer.from(values.buffer);
        const digest = crypto.createHash('sha256').update(buffer).digest('hex');
        if (expected && digest !== expected)
            wrong++;
        expected = digest;
        const name = `worker.${workerData.seed}`;
        // In the pool's threads: compressed, written, read, and unpacked again.
        zlib.deflate(buffer, { level: 1 }, (error, packed) => {
            if (error) throw error;
            fs.writeFile(name, packed, (error) => {
                if (error) throw error;
                fs.readFile(name, (error, read) => {
                    if (error) throw error;
                    zlib.inflate(read, (error, unpacked) => {
                        if (error || !unpacked.equals(buffer))
                            wrong++;
                        rounds++;
                        parentPort.postMessage({ digest, buffer });
                        if (Atomics.load(finished, 0))
                            parentPort.postMessage({ rounds, wrong });
                        else
                            round();
                    });
                });
            });
        });
    };
    round();
}
