//! The `shardwalker` command.

fn main() -> std::process::ExitCode {
    shardwalker::cli::main()
}
