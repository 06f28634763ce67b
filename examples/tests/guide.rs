//! The module `qi_core::guide` has every page of `docs/`, and a target for every link between pages. The README contains
//! the quickstart.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

const CRATE: &str = include_str!("../../core/src/lib.rs");
const LINKS: &str = include_str!("../../core/guide/links.md");

fn pages() -> Vec<PathBuf> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let folders = [docs.join("backends"), docs];
    let files = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap());
    files
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "md"))
        .collect()
}

#[test]
fn rustdoc_includes_every_page() {
    for page in pages() {
        let name = page.file_name().unwrap().to_str().unwrap();
        assert!(CRATE.contains(&format!("/{name}\",")), "`guide` in core/src/lib.rs does not include {name}");
    }
}

#[test]
fn rustdoc_has_a_target_for_every_link_between_pages() {
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        let outside_code = text.split("```").step_by(2).collect::<String>();
        assert!(!outside_code.contains(".md)"), "{} has a link without a label", page.display());
        for line in outside_code.lines().filter(|line| line.starts_with('[')) {
            let Some((label, target)) = line.split_once("]: ") else { continue };
            if target.contains(".md") {
                assert!(LINKS.contains(&format!("{label}]: ")), "core/guide/links.md has no {label}]");
            }
        }
    }
}

/// `scripts/packages` compiles and runs the files of the template.
#[test]
fn readme_contains_the_files_of_the_quickstart() {
    let readme = include_str!("../../README.md");
    let files = [
        ("toml\n# Cargo.toml", include_str!("../../templates/quickstart/Cargo.toml")),
        ("toml\n# qi.toml", include_str!("../../templates/quickstart/qi.toml")),
        ("rust,no_run\n// src/main.rs", include_str!("../../templates/quickstart/src/main.rs")),
    ];
    for (name, content) in files {
        assert!(readme.contains(&format!("\n```{name}\n{content}```\n")), "README.md shows another {name}");
    }
}
