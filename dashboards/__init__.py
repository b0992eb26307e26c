"""Sources of the Grafana dashboards and the Prometheus rules; `make dashboards` writes what is made from them.

panels/         what is shown: one module for each dashboard
grafana.py      panels -> Grafana JSON (grafana-foundation-sdk)
rules.py        recording rules and alerts, each with its runbook entry and a case in which it fires
documents.py    docs/metrics.md and docs/runbook.md
__main__.py     writes grafana/*.json, rules.yml, tests/alerts.yml and the two documents
prometheus.yml  an example configuration
"""
