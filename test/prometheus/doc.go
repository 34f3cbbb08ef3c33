// Package prometheus tests what porthole gives to Prometheus, with Debian's own:
// the rules of deploy/prometheus, the queries of deploy/grafana, and an agent that is
// scraped while a network namespace runs out of ports.
package prometheus
