"""The study of translation costs: traces, workloads, and simulators of native, nested, shadow and TPT translation."""
