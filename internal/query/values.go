package query

import (
	"encoding/csv"
	"fmt"
	"net/url"
	"strings"
)

// Encode is the query string of these values. Decode reads it back.
func Encode(values Values) url.Values {
	out := make(url.Values)
	for name, list := range values {
		for _, v := range list {
			if strings.ContainsAny(v, ",\"\r\n") || v == "" {
				v = `"` + strings.ReplaceAll(v, `"`, `""`) + `"`
			}
			out.Add(name, v)
		}
	}
	return out
}

// Decode reads the values of a query string, each name repeated or with commas
// between its values; a value with a comma of its own stands in double quotes, as
// those of flags do.
func Decode(query url.Values) (Values, error) {
	out := make(Values)
	for name, list := range query {
		for _, s := range list {
			if s == "" {
				return nil, fmt.Errorf("%s: no value", name)
			}
			row, err := csv.NewReader(strings.NewReader(s)).Read()
			if err != nil {
				return nil, fmt.Errorf("%s: %q: want values with commas between them: %w", name, s, err)
			}
			out[name] = append(out[name], row...)
		}
	}
	return out, nil
}
