"""From the generators to the mixer: the ledger, the peers, the journal."""

from dashboards.panels.base import Board, Row, graph, quantiles

PER_SECOND = "[$__rate_interval]"

BOARD = Board(
    "stream",
    "Streaming SBP / stream",
    "Every synthetic document: sent = trained + buffered + in flight + dropped + imbalance.",
    (
        Row(
            "Ledger",
            (
                graph(
                    "Ledger",
                    "Every term, in documents.",
                    ("max by (term) (sbp_ledger_documents{R})", "{{term}}"),
                ),
                graph(
                    "Imbalance",
                    "sent - trained - buffered - in flight - dropped. Must be 0 at every moment.",
                    ('max(sbp_ledger_documents{R, term="imbalance"})', "imbalance"),
                ),
                graph(
                    "Dropped by reason",
                    "Documents that are not trained, and why.",
                    ("max by (reason) (sbp_dropped_documents{R})", "{{reason}}"),
                    minimum=0,
                ),
            ),
        ),
        Row(
            "Traffic",
            (
                graph(
                    "Documents received per second",
                    "Accepted from all generators.",
                    (f"sum(rate(sbp_stream_received_documents_total{{R}}{PER_SECOND}))", "documents"),
                    minimum=0,
                ),
                graph(
                    "Bytes received per second",
                    "Of accepted documents.",
                    (f"sum(rate(sbp_stream_received_bytes_total{{R}}{PER_SECOND}))", "bytes"),
                    unit="Bps",
                    minimum=0,
                ),
                graph(
                    "Buffer and credit",
                    "Accepted and not yet mixed; granted and not yet used. Together at most stream.capacity_documents. "
                    "A full buffer is normal: generators wait for the trainer.",
                    ("max(sbp_stream_buffered_documents{R})", "buffered"),
                    ("max(sbp_stream_credit_documents{R})", "credit"),
                    minimum=0,
                ),
                graph(
                    "Staleness of trained documents",
                    "Tokens trained since the checkpoint behind the snapshot that wrote them, in the last hour.",
                    *quantiles("sbp_staleness_tokens"),
                ),
                graph(
                    "Repetitions and junk",
                    "Documents recognised as repetitions, and messages that could not be decoded.",
                    ("sum(sbp_stream_duplicates_total{R})", "duplicates"),
                    ("sum(sbp_stream_malformed_total{R})", "malformed"),
                    minimum=0,
                ),
                graph(
                    "Receiver CPU",
                    "Of the threads that receive and write the journal: taken from the trainer on a machine of few "
                    "cores.",
                    (f"sum(rate(sbp_receiver_cpu_seconds_total{{R}}{PER_SECOND}))", "CPU"),
                    unit="percentunit",
                    minimum=0,
                ),
            ),
        ),
        Row(
            "Peers",
            (
                graph(
                    "Peers",
                    "Generators connected, and how many have fallen silent so far.",
                    ("max(sbp_stream_peers{R})", "connected"),
                    ("sum(sbp_stream_dead_peers_total{R})", "fell silent"),
                    minimum=0,
                ),
                graph(
                    "Refused handshakes",
                    "Generators that may connect and do not fit: another run, tokenizer, version.",
                    ("sum by (reason) (sbp_stream_refusals_total{R})", "{{reason}}"),
                    minimum=0,
                ),
                graph(
                    "Failed connections",
                    "Refused before any message. auth: an unknown key. protocol: no keys, or no peer of this protocol.",
                    ("sum by (reason) (sbp_stream_handshake_failures_total{R})", "{{reason}}"),
                    minimum=0,
                ),
            ),
        ),
        Row(
            "Journal",
            (
                graph(
                    "Journal size",
                    "Of its shards on disk.",
                    ("max(sbp_journal_bytes{R})", "journal"),
                    unit="bytes",
                    minimum=0,
                ),
                graph(
                    "Journal write time",
                    "Of one group of documents, until it is on disk.",
                    *quantiles("sbp_journal_write_seconds"),
                    unit="s",
                ),
                graph(
                    "Journal time in fsync",
                    "Share of the time in which the journal's thread waits for the disk.",
                    (f"sum(rate(sbp_journal_fsync_seconds_total{{R}}{PER_SECOND}))", "fsync"),
                    unit="percentunit",
                    minimum=0,
                ),
                graph(
                    "Journal pauses and errors",
                    "1 while no documents are taken; groups that could not be written.",
                    ("max(sbp_journal_paused{R})", "paused"),
                    ("sum(sbp_journal_errors_total{R})", "errors"),
                    minimum=0,
                ),
            ),
        ),
    ),
)
