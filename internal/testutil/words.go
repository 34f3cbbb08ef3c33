package testutil

// HardWords are arguments that a shell would do something with, if they were not quoted.
func HardWords() []string {
	return []string{"", "plain", "two words", "it's", `"double"`, "*", "?[a-z]", "~", "$HOME", "$(id)", "`id`", `back\slash`, `'\''`, `\`, "a;b&c|d>e<f", "#x", "!x", "{1,2}",
		"line\nbreak", "tab\t", "ünïcödé", "-x", "--"}
}
