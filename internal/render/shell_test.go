package render

import (
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// What a word becomes for a shell is that word again.
func TestShellWord(t *testing.T) {
	for _, word := range testutil.HardWords() {
		out, err := exec.Command("sh", "-c", "printf %s "+ShellWord(word)).Output()
		if err != nil || string(out) != word {
			t.Errorf("%q becomes %q, %v", word, out, err)
		}
	}
}

// FuzzShellWord looks for a word that a shell reads as another, or as something to do.
func FuzzShellWord(f *testing.F) {
	for _, word := range testutil.HardWords() {
		f.Add(word)
	}
	f.Fuzz(func(t *testing.T, word string) {
		if strings.ContainsRune(word, 0) {
			t.Skip("no argument has one")
		}
		quoted := ShellWord(word)
		if rest := regexp.MustCompile(`'[^'\\]*'|\\'|\\\\|[A-Za-z0-9_./:=@%+,-]+`).ReplaceAllString(quoted, ""); rest != "" || quoted == "" {
			t.Errorf("%q: of %s this is outside of quotes: %q", word, quoted, rest)
		}
	})
}
