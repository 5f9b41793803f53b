package daemon

import (
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/portd/portd/internal/keeper"
)

// standingBy is how many threads portd has from its start on, beside one for each processor. Go makes one more whenever all that it has are in system calls that take
// longer, never ends one, and ends the program where it cannot make one: at RLIMIT_NPROC, which counts all processes of a user,
// or at the pids.max of its cgroup. A portd with 16 busy
// clients was seen with 12.
const standingBy = 24

// standBy makes the threads that portd will need while it can have them.
func standBy() {
	var started, ended sync.WaitGroup
	let := make(chan struct{})
	for range standingBy + runtime.GOMAXPROCS(0) {
		started.Add(1)
		ended.Go(func() {
			runtime.LockOSThread() // each needs a thread of its own, which stays when it is unlocked
			defer runtime.UnlockOSThread()
			started.Done()
			<-let
		})
	}
	started.Wait()
	close(let)
	ended.Wait()
}

// mostHurried is how long a daemon that comes back goes before everybody else, at most.
const mostHurried = 10 * time.Second

// calm gives up the priority that this process, and with it what it has started, began with, if any: see keeper.Hurried.
func (d *daemon) calm() {
	if d.hurried {
		keeper.Calm(os.Getpid(), d.nice)
	}
}
