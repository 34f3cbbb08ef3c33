package tracer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// A worker is a process that makes the system calls a test asks it for, one after
// the other. It is this binary again, or, between fork and exec, a stub: a copy of a
// worker that can close descriptors, become a worker, and exit. Requests come through
// descriptor 3; a worker whose test has gone exits.

// What every worker has open.
const (
	workerControl = 3 // requests in, replies out
	workerMailOut = 4 // where a descriptor waits until some worker takes it
	workerMailIn  = 5 // the other end
	workerFiles   = 6 // the first descriptor that is a test's
)

// What a stub can be asked for, with a descriptor.
const (
	stubClose = 'c'
	stubExec  = 'e'
	stubExit  = 'x'
)

// stubRequest is what a stub reads.
type stubRequest struct {
	op byte
	_  [3]byte
	fd uint32
}

// request is what a worker reads, as text: words, then an address or "-".
type request struct {
	op   string
	args [3]int
	addr string
}

func (q request) String() string {
	return strings.TrimSuffix(fmt.Sprintf("%s %d %d %d %s", q.op, q.args[0], q.args[1], q.args[2], q.addr), " ")
}

func parseRequest(s string) (q request, err error) {
	_, err = fmt.Sscan(s, &q.op, &q.args[0], &q.args[1], &q.args[2], &q.addr)
	return q, err
}

// reply is what came of a request: what the call returned, and the ends of the socket
// it was about.
type reply struct {
	ret           int
	errno         syscall.Errno
	local, remote netip.AddrPort
}

func (r reply) String() string {
	return fmt.Sprintf("%d %d %s %s", r.ret, int(r.errno), orDash(r.local), orDash(r.remote))
}

func orDash(a netip.AddrPort) string {
	if !a.IsValid() {
		return "-"
	}
	return a.String()
}

func scanDash(s string, to *netip.AddrPort) (err error) {
	if s != "-" {
		*to, err = netip.ParseAddrPort(s)
	}
	return err
}

func parseReply(s string) (r reply, err error) {
	var errno int
	var local, remote string
	if _, err := fmt.Sscan(s, &r.ret, &errno, &local, &remote); err != nil {
		return r, fmt.Errorf("reply %q: %w", s, err)
	}
	r.errno = syscall.Errno(errno)
	return r, errors.Join(scanDash(local, &r.local), scanDash(remote, &r.remote))
}

// helperWorker says which thread it is, then does what it is asked.
func helperWorker() error {
	runtime.LockOSThread()
	if err := (reply{ret: unix.Gettid()}).send(); err != nil {
		return err
	}
	buf, oob := make([]byte, 256), make([]byte, unix.CmsgSpace(4))
	for {
		n, oobn, _, _, err := unix.Recvmsg(workerControl, buf, oob, unix.MSG_CMSG_CLOEXEC)
		if err != nil || n == 0 {
			return err
		}
		q, err := parseRequest(string(buf[:n]))
		if err != nil {
			return err
		}
		fds, err := rights(oob[:oobn])
		if err != nil {
			return err
		}
		if err := serve(q, fds).send(); err != nil {
			return err
		}
	}
}

func (r reply) send() error {
	_, err := unix.Write(workerControl, []byte(r.String()))
	return err
}

// rights are the descriptors that came with a message.
func rights(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(msgs) != 1 {
		return nil, fmt.Errorf("%d control messages: %w", len(msgs), err)
	}
	return unix.ParseUnixRights(&msgs[0])
}

// serve does what is asked, and says what came of it.
func serve(q request, fds []int) reply {
	ret, err := call(q, fds)
	r := reply{ret: ret}
	if err != nil && !errors.As(err, &r.errno) {
		r.errno = unix.EPROTO // a mistake of the test
	}
	fd := q.args[0]
	switch q.op {
	case "socket", "accept", "recv":
		fd = ret
	case "getfd", "fork", "unshare", "close":
		return r
	}
	if sa, err := unix.Getsockname(fd); err == nil {
		r.local = addrPortOf(sa)
	}
	if sa, err := unix.Getpeername(fd); err == nil {
		r.remote = addrPortOf(sa)
	}
	return r
}

// call makes one system call, or the few that belong together.
func call(q request, fds []int) (int, error) {
	a, b, c := q.args[0], q.args[1], q.args[2]
	switch q.op {
	case "socket":
		return unix.Socket(a, b, 0)
	case "bind":
		return 0, errors.Join(unix.SetsockoptInt(a, unix.SOL_SOCKET, unix.SO_REUSEADDR, b), unix.Bind(a, addrFor(a, q.addr)))
	case "listen":
		return 0, unix.Listen(a, 1024)
	case "connect":
		return 0, unix.Connect(a, addrFor(a, q.addr))
	case "disconnect":
		return 0, disconnect(a)
	case "accept":
		return acceptWithin(a, b)
	case "dup":
		return unix.FcntlInt(uintptr(a), c, b)
	case "send":
		return 0, unix.Sendmsg(workerMailOut, []byte("x"), unix.UnixRights(a), nil, 0)
	case "recv":
		return receive(a)
	case "getfd":
		return getfd(a, b)
	case "shutdown":
		return 0, unix.Shutdown(a, b)
	case "linger":
		return 0, unix.SetsockoptLinger(a, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	case "close":
		return 0, unix.Close(a)
	case "unshare":
		return 0, newSpace(q.addr)
	case "fork":
		return fork(fds[0], a)
	case "exec":
		exe, err := os.Executable()
		if err != nil {
			return 0, err
		}
		return 0, unix.Exec(exe, []string{exe}, os.Environ())
	case "exit":
		os.Exit(0)
	}
	return 0, fmt.Errorf("unknown request %s", q)
}

// addrFor is an address for a descriptor's family.
func addrFor(fd int, addr string) unix.Sockaddr {
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		family = unix.AF_INET // the call that follows says what is wrong
	}
	return sockaddr(family, addr)
}

// disconnect is connect(AF_UNSPEC).
func disconnect(fd int) error {
	var none [16]byte
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&none)), unsafe.Sizeof(none))
	if errno != 0 {
		return errno
	}
	return nil
}

// acceptWithin accepts what is there, or is about to be.
func acceptWithin(fd, flags int) (int, error) {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, err
		case n == 0:
			return 0, unix.ETIME
		}
		got, _, err := unix.Accept4(fd, flags)
		return got, err
	}
}

// receive takes what waits longest.
func receive(flags int) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(workerMailIn, make([]byte, 1), oob, flags|unix.MSG_DONTWAIT)
	if err != nil {
		return 0, err
	}
	fds, err := rights(oob[:n])
	if err != nil || len(fds) != 1 {
		return 0, errors.Join(err, unix.EPROTO)
	}
	return fds[0], nil
}

func getfd(pid, fd int) (int, error) {
	of, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(of)
	return unix.PidfdGetfd(of, fd, 0)
}

// newSpace gives the calling thread a network namespace, with these ephemeral ports
// ("32768-33000"). No TIME_WAIT is used again, which older kernels do too early.
func newSpace(ports string) error {
	if err := errors.Join(unix.Unshare(unix.CLONE_NEWNET), testutil.UpLoopback()); err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte(strings.Replace(ports, "-", " ", 1)), 0),
		os.WriteFile("/proc/sys/net/ipv4/tcp_tw_reuse", []byte("0"), 0))
}

// fork makes a stub, whose requests come through ctl. pid is the one it shall have,
// 0: any. It becomes a child of this process's parent.
func fork(ctl, pid int) (int, error) {
	defer unix.Close(ctl)
	exe, err := os.Executable()
	if err != nil {
		return 0, err
	}
	path, err := unix.BytePtrFromString(exe)
	if err != nil {
		return 0, err
	}
	env, err := syscall.SlicePtrFromStrings(os.Environ())
	if err != nil {
		return 0, err
	}
	wanted := int32(pid)
	args := cloneArgs{flags: unix.CLONE_PARENT}
	if pid != 0 {
		args.setTID, args.setTIDSize = uint64(uintptr(unsafe.Pointer(&wanted))), 1
	}
	got, errno := forkStub(&args, uintptr(ctl), &stub{path: path, argv: [2]*byte{path, nil}, env: &env[0]})
	runtime.KeepAlive(&wanted)
	if errno != 0 {
		return 0, errno
	}
	return int(got), nil
}

// cloneArgs is struct clone_args of the kernel.
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// stub is the memory of one: it can have no other.
type stub struct {
	path    *byte
	argv    [2]*byte
	env     **byte
	request stubRequest
	reply   uint32
}

// forkStub returns the pid of the stub. In the stub it does not return: there is one
// thread, and no Go runtime to grow stacks or to allocate.
//
//go:norace
//go:nosplit
func forkStub(args *cloneArgs, ctl uintptr, s *stub) (uintptr, syscall.Errno) {
	pid, _, errno := syscall.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args), 0)
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	_, _, errno = syscall.RawSyscall(unix.SYS_DUP3, ctl, workerControl, 0)
	_, _, _ = syscall.RawSyscall(unix.SYS_CLOSE, ctl, 0, 0)
	for errno == 0 {
		s.reply = uint32(errno)
		if _, _, errno = syscall.RawSyscall(unix.SYS_WRITE, workerControl, uintptr(unsafe.Pointer(&s.reply)), 4); errno != 0 {
			break
		}
		n, _, _ := syscall.RawSyscall(unix.SYS_READ, workerControl, uintptr(unsafe.Pointer(&s.request)), unsafe.Sizeof(s.request))
		if n != unsafe.Sizeof(s.request) || s.request.op == stubExit {
			break
		}
		if s.request.op == stubClose {
			_, _, errno = syscall.RawSyscall(unix.SYS_CLOSE, uintptr(s.request.fd), 0, 0)
		} else {
			_, _, errno = syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(s.path)), uintptr(unsafe.Pointer(&s.argv)), uintptr(unsafe.Pointer(s.env)))
		}
	}
	for {
		_, _, _ = syscall.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(errno), 0, 0)
	}
}

// askStub is a request to a stub.
func askStub(op byte, fd int) []byte {
	return binary.NativeEndian.AppendUint32([]byte{op, 0, 0, 0}, uint32(fd))
}
