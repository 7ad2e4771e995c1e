//! The house rules that the compiler does not keep.

use std::process::Command;

#[test]
fn the_inside_knows_no_broker_engine_git_or_http() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "-p", "image-builder-actors", "-e", "normal"])
        .args(["--prefix", "none", "--format", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    let tree = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let crates: Vec<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(crates.contains(&"actix"), "the tree was read: {tree}");
    for outside in ["lapin", "bollard", "git2", "reqwest", "hyper", "nixpacks", "image-builder"] {
        assert!(!crates.contains(&outside), "the inside depends on {outside}:\n{tree}");
    }
}
