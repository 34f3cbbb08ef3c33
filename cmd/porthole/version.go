package main

import (
	"encoding/json"
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
)

func newVersion(e *env) *cobra.Command {
	var jsonRow bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			row := struct {
				Version string `json:"version"`
				Go      string `json:"go"`
				Arch    string `json:"arch"`
			}{version, runtime.Version(), runtime.GOARCH}
			if jsonRow {
				return json.NewEncoder(e.stdout).Encode(row)
			}
			_, err := fmt.Fprintf(e.stdout, "porthole %s (%s, linux/%s)\n", row.Version, row.Go, row.Arch)
			return err
		},
	}
	cmd.Flags().BoolVar(&jsonRow, "json", false, "one JSON object")
	return cmd
}
