// Goroutines that hash, sort, keep maps, and hand over to each other by channels and a socket, with the collector at
// work all the while. Until the end of its input; then prints `rounds N wrong N lost N`.
package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"runtime"
	"sort"
	"sync"
	"sync/atomic"
	"time"
)

const pairs = 4

var finished int32
var rounds, wrong, sent, received int64

func check(is bool) {
	if !is {
		atomic.AddInt64(&wrong, 1)
	}
}

func produce(seed int64, to chan<- []byte) {
	var expected [32]byte
	for round := 0; atomic.LoadInt32(&finished) == 0; round++ {
		random := rand.New(rand.NewSource(seed))
		values := make([]int, 20000)
		places := map[int]int{}
		for i := range values {
			values[i] = random.Int()
			places[values[i]] = i
		}
		first, place := values[0], places[values[0]]
		sort.Ints(values)
		check(sort.IntsAreSorted(values) && place == 0 && places[first] == 0)
		text := []byte(fmt.Sprint(values[:1000]))
		sum := sha256.Sum256(text)
		check(round == 0 || sum == expected)
		expected = sum
		atomic.AddInt64(&rounds, 1)
		atomic.AddInt64(&sent, int64(len(text)))
		to <- append(text, sum[:]...)
	}
	close(to)
}

// Through a socket, so that the poller and blocking calls have their part.
func relay(from <-chan []byte, wait *sync.WaitGroup) {
	defer wait.Done()
	here, there := net.Pipe()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err == nil)
	go func() {
		there, err = net.Dial("tcp", listener.Addr().String())
		check(err == nil)
		for text := range from {
			_, err := fmt.Fprintf(there, "%8d", len(text))
			check(err == nil)
			_, err = there.Write(text)
			check(err == nil)
		}
		there.Close()
	}()
	here, err = listener.Accept()
	check(err == nil)
	for {
		var head [8]byte
		if _, err := io.ReadFull(here, head[:]); err != nil {
			check(err == io.EOF)
			return
		}
		var size int
		fmt.Sscan(string(head[:]), &size)
		text := make([]byte, size)
		_, err := io.ReadFull(here, text)
		check(err == nil)
		sum := sha256.Sum256(text[:size-32])
		check(bytes.Equal(sum[:], text[size-32:]))
		atomic.AddInt64(&received, int64(size-32))
	}
}

func main() {
	var wait sync.WaitGroup
	runtime.GOMAXPROCS(4)
	for i := 1; i <= pairs; i++ {
		between := make(chan []byte, 4)
		wait.Add(1)
		go produce(int64(i), between)
		go relay(between, &wait)
	}
	fmt.Println("ready")
	go func() {
		// Threads of the operating system's, made and blocked.
		for {
			time.Sleep(time.Millisecond)
			runtime.GC()
		}
	}()
	io.Copy(io.Discard, os.Stdin)
	atomic.StoreInt32(&finished, 1)
	wait.Wait()
	fmt.Printf("rounds %d wrong %d lost %d\n", rounds, wrong, sent-received)
}
