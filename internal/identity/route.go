package identity

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Reasons why there is no answer. Match them with errors.Is.
var (
	// ErrNoNetNS: no process and no name of NetNSDir has a namespace of this inode number.
	ErrNoNetNS = errors.New("no such network namespace")
	// ErrUnreachable: the namespace has no route there, or not from that address.
	ErrUnreachable = errors.New("no route")
	// ErrNotPermitted: the namespace may not be entered, or not every process be asked
	// for its own.
	ErrNotPermitted = errors.New("not permitted")
)

// RouteSource returns the local address that a connection to a destination has in a
// namespace, as the kernel's routes are now. If from is valid it must be an address of
// the namespace that the destination can be reached from, and is the answer. device is the
// index of the device that it goes through; 0: any.
func RouteSource(inode uint32, to, from netip.Addr, device int) (netip.Addr, error) {
	h, err := routes(inode)
	if err != nil {
		return netip.Addr{}, err
	}
	defer h.Close()
	opts := &netlink.RouteGetOptions{OifIndex: device}
	if from.IsValid() {
		opts.SrcAddr = net.IP(from.AsSlice())
	}
	found, err := h.RouteGetWithOptions(net.IP(to.AsSlice()), opts)
	switch {
	case from.IsValid() && (err != nil || len(found) == 0):
		return from, fmt.Errorf("%w from %s to %s in namespace %d: is it one of its addresses?", ErrUnreachable, from, to, inode)
	case err != nil:
		return from, fmt.Errorf("%w to %s in namespace %d: %w", ErrUnreachable, to, inode, err)
	case from.IsValid():
		return from, nil
	}
	for _, r := range found {
		if src, ok := netip.AddrFromSlice(r.Src); ok {
			return src.Unmap(), nil
		}
	}
	return from, fmt.Errorf("%w to %s in namespace %d", ErrUnreachable, to, inode)
}

// routes asks for the routes of a namespace. The caller closes it.
func routes(inode uint32) (h *netlink.Handle, err error) {
	space, err := OpenNetNS(inode)
	if err != nil {
		return nil, err
	}
	if space != nil {
		defer space.Close()
	}
	err = InNetNS(space, func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	return h, err
}

// openNetNS opens a file that refers to a namespace.
func openNetNS(inode uint32) (*os.File, error) {
	path, err := findNetNS(inode)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) { // the last process in it has ended meanwhile
		return nil, fmt.Errorf("%w: inode number %d", ErrNoNetNS, inode)
	} else if err != nil {
		return nil, fmt.Errorf("open network namespace %d: %w", inode, err)
	}
	info, err := f.Stat()
	if err == nil {
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Ino != uint64(inode) { // it became another's
			err = ErrNoNetNS
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open network namespace %d: %w", inode, err)
	}
	return f, nil
}

// findNetNS returns a file that refers to a namespace: by name, or of a process, or last of
// a thread, which may be in another than its process.
func findNetNS(inode uint32) (string, error) {
	unread := false
	for _, at := range []struct{ pattern, file string }{
		{filepath.Join(NetNSDir, "*"), ""}, {"/proc/[0-9]*", "ns/net"}, {"/proc/[0-9]*/task/[0-9]*", "ns/net"},
	} {
		paths, err := filepath.Glob(at.pattern) // not with the file: it leaves out what may not be looked up
		if err != nil {
			return "", err
		}
		for _, path := range paths {
			path = filepath.Join(path, at.file)
			found, err := netNSInode(path)
			unread = unread || errors.Is(err, fs.ErrPermission)
			if err == nil && found == inode {
				return path, nil
			}
		}
	}
	if unread {
		return "", fmt.Errorf("look for a process in network namespace %d: %w", inode, ErrNotPermitted)
	}
	return "", fmt.Errorf("%w: inode number %d", ErrNoNetNS, inode)
}
