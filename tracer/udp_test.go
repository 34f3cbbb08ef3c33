package tracer

import (
	"fmt"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestKernelUDPBind(t *testing.T) {
	for _, end := range ends {
		t.Run(end.name, func(t *testing.T) {
			r := record(t, Config{})
			var want []string
			for i := range rounds {
				asked := 0
				if i%2 == 1 {
					asked = 7000 + i
				}
				fd := r.socket(end.family, unix.SOCK_DGRAM)
				r.bind(fd, fmt.Sprintf("%s:%d", end.ip, asked))
				got := r.local(fd)
				// Sending from a bound socket binds nothing.
				if err := unix.Sendto(fd, []byte("x"), 0, sockaddr(end.family, end.ip+":9")); err != nil {
					t.Fatal(err)
				}
				r.close(fd)
				want = append(want,
					fmt.Sprintf("bind udp %s:%d asked %d", end.shown, got.Port(), asked),
					fmt.Sprintf("close udp %s:%d", end.shown, got.Port()))
			}
			r.expect(os.Getpid(), want...)
		})
	}
}

func TestKernelUDPImplicitSend(t *testing.T) {
	for _, end := range ends {
		t.Run(end.name, func(t *testing.T) {
			r := record(t, Config{})
			any := map[int]string{unix.AF_INET: "0.0.0.0", unix.AF_INET6: "[::]"}[end.family]
			var want []string
			for range rounds {
				fd := r.socket(end.family, unix.SOCK_DGRAM)
				for range 3 { // only the first binds
					if err := unix.Sendto(fd, []byte("x"), 0, sockaddr(end.family, end.ip+":9")); err != nil {
						t.Fatal(err)
					}
				}
				port := r.local(fd).Port()
				r.close(fd)
				want = append(want,
					fmt.Sprintf("bind udp %s:%d implicit", any, port), fmt.Sprintf("close udp %s:%d", any, port))
			}
			r.expect(os.Getpid(), want...)
		})
	}
}

func TestKernelUDPConnect(t *testing.T) {
	for _, end := range ends {
		t.Run(end.name, func(t *testing.T) {
			r := record(t, Config{})
			to := netip.MustParseAddrPort(end.ip + ":9")
			any := map[int]string{unix.AF_INET: "0.0.0.0", unix.AF_INET6: "[::]"}[end.family]
			var want []string
			for i := range rounds {
				fd := r.socket(end.family, unix.SOCK_DGRAM)
				if i%2 == 1 {
					r.bind(fd, end.ip+":0")
				}
				r.connect(fd, to)
				from := r.local(fd)
				if i%2 == 1 {
					want = append(want, fmt.Sprintf("bind udp %s asked 0", from))
				} else { // connect() takes the port first, for any address
					want = append(want, fmt.Sprintf("bind udp %s:%d implicit", any, from.Port()))
				}
				shown := fmt.Sprintf("%s > %s:9", from, end.shown)
				// A datagram to elsewhere from a connected socket binds nothing.
				if err := unix.Sendto(fd, []byte("x"), 0, sockaddr(end.family, end.ip+":10")); err != nil {
					t.Fatal(err)
				}
				r.close(fd)
				want = append(want, "connect udp "+shown, "close udp "+shown)
			}
			r.expect(os.Getpid(), want...)
		})
	}
}

// connect(AF_UNSPEC) takes the peer away, and the port where the kernel chose it.
func TestKernelUDPDisconnect(t *testing.T) {
	r := record(t, Config{})
	unspec := func(fd int) {
		var sa unix.RawSockaddrAny
		if err := connectRaw(fd, &sa, unix.SizeofSockaddrInet4); err != nil {
			t.Fatal(err)
		}
	}
	chosen := r.socket(unix.AF_INET, unix.SOCK_DGRAM)
	r.connect(chosen, netip.MustParseAddrPort("127.0.0.1:9"))
	from := r.local(chosen)
	unspec(chosen)
	r.expect(os.Getpid(),
		fmt.Sprintf("bind udp 0.0.0.0:%d implicit", from.Port()),
		fmt.Sprintf("connect udp %s > 127.0.0.1:9", from),
		fmt.Sprintf("close udp %s > 127.0.0.1:9", from))
	r.close(chosen)

	bound := r.socket(unix.AF_INET, unix.SOCK_DGRAM)
	r.bind(bound, "127.0.0.1:7001")
	r.connect(bound, netip.MustParseAddrPort("127.0.0.1:9"))
	unspec(bound)
	r.expect(os.Getpid(), "bind udp 127.0.0.1:7001 asked 7001", "connect udp 127.0.0.1:7001 > 127.0.0.1:9")
	if held := r.held(7001); len(held) != 1 || held[0].Role != RoleBound || held[0].Remote.IsValid() {
		t.Errorf("table has %+v on port 7001, want one bound socket without a peer", held)
	}
	r.close(bound)
	r.expect(os.Getpid(), "close udp 127.0.0.1:7001")
}
