"""What `benchmarks.quality_peers` runs, each module in a process of its own; run from `benchmarks/`.

`autoround`, `hqq` and `llm_compressor` run in an environment that has their tool and nothing of ours; `prepare`,
`ours` and `score` need awq_tvm. All that quantize are called alike, see `interface`.
"""
