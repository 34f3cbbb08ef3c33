package api

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/porthole-dev/porthole/internal/query"
)

// Any query of any request is understood or refused with 400 and a JSON object that
// has nothing a terminal would obey.
func FuzzRequest(f *testing.F) {
	for _, seed := range []string{"port=1,2&proto=udp", "event=%1b[31m", "to=192.0.2.1:443&from=::1", "%zz", "netns=%0a", "comm=%22", "verbose=true", "a=b;c"} {
		f.Add(seed)
	}
	a := &Server{cfg: Config{Log: slog.New(slog.DiscardHandler)}}
	parse := a.answer(func(w http.ResponseWriter, r *http.Request) error {
		v, err := values(r)
		if err != nil {
			return err
		}
		var errs []error
		for _, parse := range []func() error{
			func() error { _, err := query.ParseSockets(v); return err },
			func() error { _, err := query.ParseEvents(v); return err },
			func() error { _, err := query.ParseHeadroom(v); return err },
			func() error { _, err := query.ParseHistory(v, time.Unix(1_764_300_000, 0)); return err },
			func() error { _, err := query.ParsePort("80", v); return err },
			func() error { return query.None(v) },
		} {
			if err := parse(); err != nil {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	})
	f.Fuzz(func(t *testing.T, query string) {
		w := httptest.NewRecorder()
		parse.ServeHTTP(w, &http.Request{Method: http.MethodGet, URL: &url.URL{Path: "/v1/sockets", RawQuery: query}})
		body := w.Body.String()
		var refused Refusal
		if w.Code != http.StatusOK && (w.Code != http.StatusBadRequest || json.Unmarshal([]byte(body), &refused) != nil || refused.Error == "") {
			t.Errorf("%q: %d %s", query, w.Code, body)
		}
		if i := strings.IndexFunc(body, func(r rune) bool { return unicode.IsControl(r) && r != '\n' }); i >= 0 {
			t.Errorf("%q: a control character in %q", query, body)
		}
	})
}
