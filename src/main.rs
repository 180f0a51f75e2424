//! The `sealbd` command.

fn main() -> std::process::ExitCode {
    sealbd::cli::main()
}
