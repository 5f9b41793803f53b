package keeper

import (
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

func TestExitStatus(t *testing.T) {
	for script, want := range map[string]string{"exit 7": "exit code 7", "kill -SEGV $$": "signal 11 (segmentation fault)", "true": "exit code 0"} {
		cmd := exec.Command("sh", "-c", "ulimit -c 0; read line; "+script)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		pidfd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		if status := exitStatus(pidfd); status != nil {
			t.Errorf("%s runs and ends with %s", script, reason(status))
		}
		in.Close()
		_ = cmd.Wait() // what it says is what is compared
		status := exitStatus(pidfd)
		_ = unix.Close(pidfd)
		if status == nil {
			t.Skip("the kernel does not tell how a process ended that was waited for (PIDFD_INFO_EXIT, Linux 6.15)")
		}
		if got := reason(status); got != want {
			t.Errorf("%s: %s, want %s", script, got, want)
		}
	}
}
