package identity

import (
	"os/user"
	"strconv"
)

// UserName is the name of a user of this machine, or where there is none the number, so that it
// can be shown on a terminal. It reads a file.
func UserName(uid uint32) string {
	name := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(name); err == nil {
		return Safe(u.Username)
	}
	return name
}
