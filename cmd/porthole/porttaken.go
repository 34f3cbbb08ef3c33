package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"syscall"

	"github.com/porthole-dev/porthole/internal/agent"
	"github.com/porthole-dev/porthole/internal/check"
	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/tracer"
)

// whoHasIt adds to an error of listening who has the port; any other it returns as it is.
func whoHasIt(ctx context.Context, err error) error {
	var failed *net.OpError
	if !errors.Is(err, syscall.EADDRINUSE) || !errors.As(err, &failed) {
		return err
	}
	at, ok := failed.Addr.(*net.TCPAddr)
	if !ok {
		return err
	}
	own, nsErr := identity.NetNSOfThread()
	if nsErr != nil {
		return err // which is the reason
	}
	quiet := &env{stderr: io.Discard}
	src, srcErr := openSource(quiet, &agentOptions{local: true})
	if srcErr != nil {
		return err
	}
	rows, _, rowsErr := socketRows(ctx, quiet, src, query.Values{
		"lport": {strconv.Itoa(at.Port)}, "proto": {"tcp"}, "netns": {strconv.FormatUint(uint64(own), 10)},
	})
	call := check.Bind{Proto: tracer.TCP, Local: netip.AddrPortFrom(at.AddrPort().Addr().Unmap(), uint16(at.Port)), ReuseAddr: true}
	flag := "web"
	if errors.Is(err, agent.ErrListenAPI) {
		flag = "api"
	}
	for _, row := range call.InTheWay(rows) {
		if rowsErr == nil && len(row.Holders) > 0 {
			h := &row.Holders[0]
			return fmt.Errorf("%w: %s (pid %d) has it; porthole who %d says more, --%s.listen-address takes another", err, identity.Safe(h.Comm), h.PID, at.Port, flag)
		}
	}
	return err
}
