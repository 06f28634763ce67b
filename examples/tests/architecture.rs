//! The module graph of docs/architecture.md equals the graph of the code and has no import cycle.
//!
//! A module may import from its parent and from its own children. Every other import is an edge. An import through a
//! re-export counts for the module that defines the item.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};
use syn::{Attribute, ItemMod, ItemUse, UseTree, Visibility};

const PAGE: &str = include_str!("../../docs/architecture.md");

/// The path of a module in its crate: `["store", "query"]`.
type Module = Vec<String>;
type Graph = BTreeMap<Module, BTreeSet<Module>>;

/// The imports of one module, with expanded `use` trees.
#[derive(Default)]
struct Imports {
    used: Vec<Vec<String>>,
    /// The re-exports: the new name and its path.
    exported: Vec<(String, Vec<String>)>,
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
    })
}

fn leaves(tree: &UseTree, mut path: Vec<String>, found: &mut Vec<(String, Vec<String>)>) {
    match tree {
        UseTree::Path(part) => {
            path.push(part.ident.to_string());
            leaves(&part.tree, path, found);
        }
        UseTree::Group(group) => {
            for tree in &group.items {
                leaves(tree, path.clone(), found);
            }
        }
        UseTree::Name(name) if name.ident == "self" => found.push((path.last().unwrap().clone(), path)),
        UseTree::Name(name) => {
            path.push(name.ident.to_string());
            found.push((name.ident.to_string(), path));
        }
        UseTree::Rename(name) => {
            path.push(name.ident.to_string());
            found.push((name.rename.to_string(), path));
        }
        UseTree::Glob(_) => found.push(("*".to_owned(), path)),
    }
}

impl<'ast> Visit<'ast> for Imports {
    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        if !is_test(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        let mut found = Vec::new();
        leaves(&item.tree, Vec::new(), &mut found);
        if matches!(item.vis, Visibility::Inherited) {
            self.used.extend(found.into_iter().map(|(_, path)| path));
        } else {
            self.exported.extend(found);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.segments.len() > 1 {
            self.used.push(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        }
        visit::visit_path(self, path);
    }
}

/// The modules of a crate with their imports.
struct Crate {
    modules: BTreeMap<Module, Imports>,
}

impl Crate {
    fn read(src: &Path) -> Self {
        let (mut modules, mut folders) = (BTreeMap::new(), vec![(src.to_owned(), Module::new())]);
        while let Some((folder, parent)) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path: PathBuf = entry.unwrap().path();
                let mut module = parent.clone();
                let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
                if path.is_dir() {
                    module.push(name);
                    folders.push((path, module));
                    continue;
                }
                if path.extension().is_none_or(|extension| extension != "rs") {
                    continue;
                }
                match name.as_str() {
                    "tests" => continue,
                    "lib" | "mod" => {}
                    _ => module.push(name),
                }
                let mut imports = Imports::default();
                imports.visit_file(&syn::parse_file(&std::fs::read_to_string(&path).unwrap()).unwrap());
                modules.insert(module, imports);
            }
        }
        Self { modules }
    }

    /// Returns the module that defines `path` as seen from `module`, or None for another crate.
    fn target(&self, module: &[String], path: &[String]) -> Option<Module> {
        let (mut at, mut rest) = match path[0].as_str() {
            "crate" => (Module::new(), &path[1..]),
            "self" => (module.to_vec(), &path[1..]),
            "super" => {
                let up = path.iter().take_while(|part| *part == "super").count();
                (module[..module.len() - up].to_vec(), &path[up..])
            }
            first => {
                let imported = self.modules[module].used.iter();
                let imported = imported.filter(|used| used.len() > 1 && used[0] != first);
                let mut imported = imported.filter(|used| used.last().is_some_and(|last| last == first));
                match imported.next() {
                    Some(used) => (self.target(module, used)?, &path[1..]),
                    None if self.modules.contains_key(&[module, &path[..1]].concat()) => {
                        (module.to_vec(), path)
                    }
                    None => return None,
                }
            }
        };
        while let Some((next, further)) = rest.split_first() {
            let child = [at.as_slice(), std::slice::from_ref(next)].concat();
            if self.modules.contains_key(&child) {
                (at, rest) = (child, further);
                continue;
            }
            let exported = self.modules.get(&at).and_then(|module| {
                module
                    .exported
                    .iter()
                    .find(|(name, path)| name == next && path.last() != Some(&"*".to_owned()))
            });
            return match exported {
                Some((_, path)) => self.target(&at, path).or(Some(at)),
                None => Some(at),
            };
        }
        Some(at)
    }

    /// Returns the imports of each module, except from its parent and its children.
    fn graph(&self) -> Graph {
        let edges = |(module, imports): (&Module, &Imports)| {
            let targets = imports.used.iter().filter_map(|path| self.target(module, path));
            let kin = |other: &Module| {
                module == other
                    || other.split_last().is_some_and(|(_, parent)| parent == module)
                    || module.split_last().is_some_and(|(_, parent)| parent == other)
            };
            (module.clone(), targets.filter(|target| !kin(target)).collect())
        };
        self.modules.iter().map(edges).collect()
    }
}

/// Returns the graph of the top-level modules. An import of a descendant is an import of its ancestor.
fn top_level(graph: &Graph) -> BTreeMap<String, BTreeSet<String>> {
    let mut top = BTreeMap::<String, BTreeSet<String>>::new();
    for (module, targets) in graph {
        let Some(module) = module.first() else { continue };
        let targets = targets.iter().filter_map(|target| target.first()).filter(|target| *target != module);
        top.entry(module.clone()).or_default().extend(targets.cloned());
    }
    top
}

/// Walks the imports of a module in depth. Returns true if the walk reaches a module of its own path, which is a cycle.
fn walk<N: Ord + Clone>(
    graph: &BTreeMap<N, BTreeSet<N>>,
    node: &N,
    path: &mut Vec<N>,
    finished: &mut BTreeSet<N>,
) -> bool {
    if let Some(at) = path.iter().position(|earlier| earlier == node) {
        path.drain(..at);
        return true;
    }
    if finished.contains(node) {
        return false;
    }
    path.push(node.clone());
    if graph.get(node).into_iter().flatten().any(|next| walk(graph, next, path, finished)) {
        return true;
    }
    finished.extend(path.pop());
    false
}

/// Returns a cycle of imports.
fn cycle<N: Ord + Clone>(graph: &BTreeMap<N, BTreeSet<N>>) -> Option<Vec<N>> {
    let mut finished = BTreeSet::new();
    graph.keys().find_map(|node| {
        let mut path = Vec::new();
        walk(graph, node, &mut path, &mut finished).then_some(path)
    })
}

fn crate_of(name: &str) -> Crate {
    Crate::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name).join("src"))
}

#[test]
fn core_and_adapters_have_no_import_cycle() {
    for name in ["core", "adapters"] {
        let graph = crate_of(name).graph();
        assert!(graph.len() > 50, "{name} has {} modules", graph.len());
        assert_eq!(cycle(&graph), None, "modules of {name}");
        assert_eq!(cycle(&top_level(&graph)), None, "top-level modules of {name}");
    }
}

#[test]
fn architecture_page_shows_the_imports_of_each_module() {
    for name in ["core", "adapters"] {
        for (module, targets) in top_level(&crate_of(name).graph()) {
            let targets: Vec<_> = targets.iter().map(|target| format!("`{target}`")).collect();
            let targets = if targets.is_empty() { "none".to_owned() } else { targets.join(", ") };
            let row = format!("| `{module}` | {targets} |");
            assert!(PAGE.contains(&row), "docs/architecture.md has no row of {name} that begins with\n{row}");
        }
    }
}

#[test]
fn import_cycle_is_detected() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    file("lib.rs", "mod a; mod b; mod c;");
    file("a/mod.rs", "mod inner; pub use inner::Inner; use crate::b::B; pub struct A;");
    file("a/inner.rs", "pub struct Inner; fn parent(_: super::A) {}");
    file("b.rs", "pub struct B; #[cfg(test)] mod tests { use crate::a::A; }");
    file("c.rs", "use crate::a::Inner;");
    let graph = Crate::read(folder.path()).graph();
    let module = |path: &str| path.split("::").map(str::to_owned).collect::<Module>();
    assert_eq!(graph[&module("c")], BTreeSet::from([module("a::inner")]));
    assert_eq!(cycle(&graph), None);
    file("b.rs", "pub struct B; fn of_c() { crate::c::f() }");
    file("c.rs", "use crate::a; pub fn f() { a::g() }");
    let graph = Crate::read(folder.path()).graph();
    assert_eq!(cycle(&graph), Some(vec![module("a"), module("b"), module("c")]));
}

/// A sum that wraps would be stored as a wrong value. The profile for benchmarks inherits the setting.
#[test]
fn the_release_profile_checks_overflows() {
    let manifest = include_str!("../../Cargo.toml");
    let (_, release) = manifest.split_once("\n[profile.release]\n").unwrap();
    let release = release.split("\n[").next().unwrap();
    assert!(release.lines().any(|line| line.trim() == "overflow-checks = true"), "{release}");
    assert!(!manifest.contains("overflow-checks = false"));
}
