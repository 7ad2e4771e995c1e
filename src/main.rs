use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = image_builder::planner::child::run() {
        return code;
    }
    ExitCode::SUCCESS
}
