import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.concurrent.ArrayBlockingQueue;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.atomic.AtomicLong;

/** Threads that sort, hash and hand over to each other, so that the compiler and the collector are busy as well. Until
 * the end of its input; then prints `rounds N wrong N lost N`. */
public final class Workers {
    private static final int PAIRS = 4;
    private static volatile boolean finished;
    private static final AtomicLong rounds = new AtomicLong(), wrong = new AtomicLong();
    private static final AtomicLong sent = new AtomicLong(), received = new AtomicLong();

    private static long sum(long[] values) {
        long sum = 0;
        for (long value : values) {
            sum = sum * 31 + value;
        }
        return sum;
    }

    /** The same numbers each time: sorted by two ways they come to the same, and to what they came to before. */
    private static void produce(int seed, BlockingQueue<long[]> queue) throws InterruptedException {
        long expected = 0;
        while (!finished) {
            long[] values = new Random(seed).longs(20000).toArray();
            long[] other = values.clone();
            Arrays.sort(values);
            Arrays.parallelSort(other);
            double root = 0;
            for (int i = 1; i < 2000; i++) {
                root += Math.sqrt(i) / Math.cbrt(i);
            }
            long sum = sum(values) + Double.doubleToLongBits(root);
            if (!Arrays.equals(values, other) || (expected != 0 && sum != expected)) {
                wrong.incrementAndGet();
            }
            expected = sum;
            rounds.incrementAndGet();
            queue.put(values);
            sent.addAndGet(sum(values));
        }
        queue.put(new long[0]);
    }

    private static void consume(BlockingQueue<long[]> queue) throws InterruptedException {
        for (long[] values = queue.take(); values.length > 0; values = queue.take()) {
            received.addAndGet(sum(values));
        }
    }

    private interface Work {
        void run() throws InterruptedException;
    }

    private static Thread start(Work work) {
        Thread thread = new Thread(() -> {
            try {
                work.run();
            } catch (Throwable thrown) {
                thrown.printStackTrace();
                wrong.incrementAndGet();
            }
        });
        thread.start();
        return thread;
    }

    public static void main(String[] arguments) throws Exception {
        List<Thread> threads = new ArrayList<>();
        for (int i = 0; i < PAIRS; i++) {
            int seed = i + 1;
            BlockingQueue<long[]> queue = new ArrayBlockingQueue<>(4);
            threads.add(start(() -> produce(seed, queue)));
            threads.add(start(() -> consume(queue)));
        }
        System.out.println("ready");
        while (System.in.read() >= 0) {
        }
        finished = true;
        for (Thread thread : threads) {
            thread.join();
        }
        System.out.printf("rounds %d wrong %d lost %d%n", rounds.get(), wrong.get(), sent.get() - received.get());
    }
}
