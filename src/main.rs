//! The `shardwalker` command.

// Records are parsed on one thread and dropped on another, a thousand small pieces a page: the system's allocator
// takes a third of the CPU for that, this one half as much (docs/benchmarks.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    shardwalker::cli::main()
}
