package render

import (
	"regexp"
	"strings"
	"sync"

	"github.com/porthole-dev/porthole/internal/identity"
)

var plainWord = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z0-9_./:=@%+,-]+$`) })

// ShellWord quotes a word for a shell, whichever it is: in single quotes, with quotes and backslashes
// outside of them, because fish(1) reads those inside too. A terminal is not to be shown it: see ShownWord.
func ShellWord(word string) string {
	if plainWord().MatchString(word) {
		return word
	}
	return "'" + strings.NewReplacer("'", `'\''`, `\`, `'\\'`).Replace(word) + "'"
}

// ShownWord is ShellWord as a terminal may show it: a word that identity.Safe changes is in the form $'...',
// which most shells take.
func ShownWord(word string) string {
	if safe := identity.Safe(word); safe != word {
		return "$'" + strings.ReplaceAll(strings.Trim(safe, `"`), "'", `\'`) + "'"
	}
	return ShellWord(word)
}
