package top

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/identity"
)

// victim is a process that the user may end. It is held by a descriptor: whatever gets its number once
// it has ended is never meant.
type victim struct {
	process
	fd      int
	user    string
	args    string
	started time.Duration // since the machine's boot
	may     error         // why it may not be sent a signal; nil: it may
}

// tick is the unit of start times in /proc.
const tick = 10 * time.Millisecond

// errOther is a process whose number another has by now.
var errOther = errors.New("it has ended, and another process has its number")

// sinceBoot is the time that start times are compared with.
func sinceBoot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0 // then no process is believed to be the one
	}
	return time.Duration(ts.Nano())
}

// openVictim opens the process that had a port at a time since the machine's boot, or later: the one
// that has its number now, if it had that before. The caller closes it.
func openVictim(p process, had time.Duration) (*victim, error) {
	fd, err := unix.PidfdOpen(int(p.pid), 0)
	switch {
	case errors.Is(err, unix.ESRCH):
		return nil, errors.New("it has ended")
	case err != nil:
		return nil, fmt.Errorf("pidfd_open: %w", err)
	}
	v := &victim{process: p, fd: fd}
	// The descriptor is of this very process, if it started before: then the number was never another's.
	if err := v.read(had); err != nil {
		v.close()
		return nil, err
	}
	v.may = unix.PidfdSendSignal(fd, 0, nil, 0)
	return v, nil
}

func (v *victim) close() { unix.Close(v.fd) }

// read reads what /proc says of the process.
func (v *victim) read(had time.Duration) error {
	dir := "/proc/" + strconv.FormatUint(uint64(v.pid), 10)
	stat, err := os.ReadFile(dir + "/stat")
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return errors.New("it has ended")
	} else if err != nil {
		return err
	}
	if v.started, err = startOf(stat); err != nil {
		return fmt.Errorf("read %s/stat: %w", dir, err)
	}
	if v.started+tick > had {
		return errOther
	}
	if info, err := os.Stat(dir); err == nil {
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			v.user = identity.UserName(st.Uid)
		}
	}
	if args, err := os.ReadFile(dir + "/cmdline"); err == nil {
		v.args = identity.Safe(strings.TrimSpace(strings.ReplaceAll(string(args), "\x00", " ")))
	}
	return nil
}

// startOf is when a process started, of its stat: the 22nd field, the second of which is a name in
// brackets that may have anything in it.
func startOf(stat []byte) (time.Duration, error) {
	i := bytes.LastIndexByte(stat, ')')
	if i < 0 {
		return 0, errors.New("it has no name")
	}
	fields := strings.Fields(string(stat[i+1:]))
	const start = 22 - 3
	if len(fields) <= start {
		return 0, errors.New("it has no start time")
	}
	ticks, err := strconv.ParseInt(fields[start], 10, 64)
	return time.Duration(ticks) * tick, err
}

// endsWithin is how long a process has to end before it is said that it has not.
const endsWithin = 3 * time.Second

// send sends a signal, and says what came of it.
func (v *victim) send(sig syscall.Signal) (string, error) {
	name := unix.SignalName(sig)
	if err := unix.PidfdSendSignal(v.fd, sig, nil, 0); errors.Is(err, unix.ESRCH) {
		return fmt.Sprintf("%s (pid %d) had ended already", v.comm, v.pid), nil
	} else if err != nil {
		return "", fmt.Errorf("send %s to %s (pid %d): %w", name, v.comm, v.pid, err)
	}
	end := time.Now().Add(endsWithin)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(v.fd), Events: unix.POLLIN}}, int(time.Until(end).Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR) && time.Now().Before(end):
			continue
		case n > 0:
			return fmt.Sprintf("%s (pid %d) has ended after %s", v.comm, v.pid, name), nil
		}
		return fmt.Sprintf("%s (pid %d) has not ended %d s after %s", v.comm, v.pid, endsWithin/time.Second, name), nil
	}
}
