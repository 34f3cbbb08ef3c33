package api

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// Guard refuses what a browser on this machine asks for a page of somebody else: that
// page's host name leads to the loopback address by now (DNS rebinding), but the browser
// still says the name. Who asks over the loopback has to ask for a name that leads there
// by right. Elsewhere any name does: Prometheus asks by whatever name a machine has. TLS
// has a certificate to tell, and needs none. addrs are those that are listened on: their hosts
// are names that lead there.
func Guard(addrs []string, h http.Handler) http.Handler {
	names := make([]string, len(addrs))
	for i, addr := range addrs {
		names[i] = hostOf(addr)
	}
	return http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		if host := hostOf(r.Host); viaLoopback(r) && !mayMean(names, host) {
			writeError(out, http.StatusMisdirectedRequest,
				fmt.Errorf("host %q: want an address, localhost, this machine's name or one of /etc/hosts, or of --web.listen-address", host))
			return
		}
		h.ServeHTTP(out, r)
	})
}

func viaLoopback(r *http.Request) bool {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return ok && local.IP.IsLoopback()
}

// hostOf is the host of an address as HTTP has it, with or without a port.
func hostOf(s string) string {
	if host, _, err := net.SplitHostPort(s); err == nil {
		s = host
	}
	return strings.ToLower(strings.TrimSuffix(strings.Trim(s, "[]"), "."))
}

// mayMean tells whether a host is one of names, or one that may mean this machine to itself.
func mayMean(names []string, host string) bool {
	if _, err := netip.ParseAddr(host); err == nil || host == "" || host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	if own, err := os.Hostname(); err == nil {
		own = strings.ToLower(own)
		if short, _, _ := strings.Cut(own, "."); host == own || host == short {
			return true
		}
	}
	return slices.Contains(names, host) || inHosts(host)
}

// inHosts tells whether hosts(5) has a name.
func inHosts(host string) bool {
	text, err := os.ReadFile("/etc/hosts")
	if err != nil {
		return false
	}
	for line := range strings.Lines(strings.ToLower(string(text))) {
		line, _, _ = strings.Cut(line, "#")
		if words := strings.Fields(line); len(words) > 1 && slices.Contains(words[1:], host) {
			return true
		}
	}
	return false
}
