//! The `shardwalker` command.

// Records are parsed on one thread and dropped on another, in many small pieces; measured in docs/benchmarks.md.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    shardwalker::cli::main()
}
