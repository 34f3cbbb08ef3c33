package agent

import (
	"errors"
	"net/http"
)

// headroom answers as the command of that name will.
func (a *agent) headroom(http.ResponseWriter, *http.Request) error {
	return &httpError{http.StatusNotImplemented, errors.New("headroom is not there yet")}
}
