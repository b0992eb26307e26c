"""The processes themselves: alive, talking, and what they take."""

from dashboards.panels.base import Board, Row, graph

BOARD = Board(
    "processes",
    "Streaming SBP / processes",
    "Is every process there, does it answer, and what does it take of the machine.",
    (
        Row(
            "Alive",
            (
                graph(
                    "Processes that run",
                    "By kind, beside those that should run.",
                    ("max by (kind) (sbp_role_up{R})", "{{kind}}"),
                    ("max by (kind) (sbp_role_wanted{R})", "{{kind}} wanted"),
                    minimum=0,
                ),
                graph(
                    "Restarts",
                    "Processes that died and were started again, since the supervisor started.",
                    ("sum by (kind) (sbp_role_restarts_total{R})", "{{kind}}"),
                    minimum=0,
                ),
                graph(
                    "Silence",
                    "How long a process that runs has not rewritten its status. A growing line: it hangs, or is "
                    "stopped.",
                    ("max by (kind) (sbp_role_silent_seconds{R})", "{{kind}}"),
                    unit="s",
                    minimum=0,
                ),
                graph(
                    "Answers Prometheus",
                    "1 while the process answers. 0: it died, or hangs.",
                    ("max by (name) (up{R})", "{{name}}"),
                    minimum=0,
                    maximum=1,
                ),
                graph(
                    "Uptime",
                    "Since the process started.",
                    ("max by (name) (time() - process_start_time_seconds{R})", "{{name}}"),
                    unit="s",
                ),
            ),
        ),
        Row(
            "Resources",
            (
                graph(
                    "Resident memory",
                    "By process. It should be flat after the first minutes.",
                    ("max by (name) (process_resident_memory_bytes{R})", "{{name}}"),
                    unit="bytes",
                    minimum=0,
                ),
                graph(
                    "CPU",
                    "Cores that each process keeps busy.",
                    ("sum by (name) (rate(process_cpu_seconds_total{R}[$__rate_interval]))", "{{name}}"),
                    minimum=0,
                ),
                graph(
                    "Available memory",
                    "Of the machine.",
                    ("min(sbp_memory_available_bytes{R})", "available"),
                    ("max(sbp_memory_total_bytes{R})", "total"),
                    unit="bytes",
                    minimum=0,
                ),
                graph(
                    "Disk space",
                    "Free on the run directory's file system.",
                    ("min(sbp_disk_free_bytes{R})", "free"),
                    unit="bytes",
                    minimum=0,
                ),
                graph(
                    "Open files",
                    "By process, and the limit.",
                    ("max by (name) (process_open_fds{R})", "{{name}}"),
                    ("min(process_max_fds{R})", "limit"),
                    minimum=0,
                ),
                graph(
                    "Virtual memory",
                    "By process; mapped files count.",
                    ("max by (name) (process_virtual_memory_bytes{R})", "{{name}}"),
                    unit="bytes",
                    minimum=0,
                ),
            ),
        ),
        Row(
            "Watching itself",
            (
                graph(
                    "Scrape time",
                    "How long Prometheus needs to read each process.",
                    ("max by (name) (scrape_duration_seconds{R})", "{{name}}"),
                    unit="s",
                ),
                graph(
                    "Series",
                    "Samples of each scrape. Flat: labels have closed lists of values.",
                    ("max by (name) (scrape_samples_scraped{R})", "{{name}}"),
                    minimum=0,
                ),
            ),
        ),
    ),
)
