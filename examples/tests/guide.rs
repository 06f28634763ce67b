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

#[test]
fn anchors_exist_and_link_labels_are_in_the_last_block() {
    let mut faults = Vec::new();
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        let outside_code = text.split("```").step_by(2).collect::<String>();
        for target in outside_code.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(t, _)| t)
        {
            if target.starts_with('#') && !has_anchor(&text, target) {
                faults.push(format!("{} has no anchor {target}", page.display()));
            }
        }
        let lines: Vec<&str> = outside_code.trim_end().lines().collect();
        let labels = lines.iter().rev().take_while(|line| label(line).is_some()).count();
        for line in lines.iter().take(lines.len() - labels).filter(|line| label(line).is_some()) {
            faults.push(format!("{} has a link label before its last block: {line}", page.display()));
        }
        for (name, target) in lines.iter().filter_map(|line| label(line)) {
            if outside_code.matches(&format!("[{name}]")).count() < 2 {
                faults.push(format!("{} does not use the link label [{name}]", page.display()));
            }
            let Some((file, anchor)) =
                target.split_once('#').filter(|(file, _)| file.strip_suffix(".md").is_some())
            else {
                continue;
            };
            let other = std::fs::read_to_string(page.with_file_name(file));
            if !other.is_ok_and(|text| has_anchor(&text, &format!("#{anchor}"))) {
                faults.push(format!("{} links {target}, which does not exist", page.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The label and the target of a link definition.
fn label(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix('[')?.split_once("]: ")
}

/// Returns true if a page has the heading of an anchor, by the rule of GitHub.
fn has_anchor(text: &str, anchor: &str) -> bool {
    let headings = text.split("```").step_by(2).flat_map(str::lines).filter(|line| line.starts_with('#'));
    let mut anchors = headings.map(|heading| {
        let words = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = words.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect::<String>()
    });
    anchors.any(|found| anchor.strip_prefix('#') == Some(found.as_str()))
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
