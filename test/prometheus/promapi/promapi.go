// Package promapi asks a Prometheus that a test has started.
package promapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"time"
)

// Server is a Prometheus, by its address as HOST:PORT. What it is asked fails after a minute at the latest.
type Server struct{ Addr string }

var client = http.Client{Timeout: time.Minute}

// Ready is why it does not answer yet; nil: it does.
func (s Server) Ready() error {
	resp, err := client.Get("http://" + s.Addr + "/-/ready")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s", resp.Status)
	}
	return nil
}

// Get asks the API, and decodes the data of the answer.
func (s Server) Get(path string, values url.Values, data any) error {
	resp, err := client.Get("http://" + s.Addr + "/api/v1/" + path + "?" + values.Encode())
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer := struct {
		Status, Error string
		Data          any
	}{Data: data}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return fmt.Errorf("answer to %s: %w", path, err)
	}
	if answer.Status != "success" {
		return fmt.Errorf("%s: %s", path, answer.Error)
	}
	return nil
}

// Series is one of an answer: Value is a time and a number as text, or there is a native Histogram.
type Series struct {
	Metric    map[string]string
	Value     [2]any
	Histogram []any
}

// Query is the series of an expression, now.
func (s Server) Query(expr string) ([]Series, error) {
	var data struct{ Result []Series }
	err := s.Get("query", url.Values{"query": {expr}}, &data)
	return data.Result, err
}
