//! Which file depends on which, and where that goes in a circle.
//!
//! A path such as `crate::a::b`, `super::b` or `self::b` is followed down the modules as far as they go; the file in
//! which it ends is the one that is depended on. A path may also begin with a module that is declared in the same one,
//! or with a name that a `use` has brought there. Where a path meets a name that another module has by a `use` only, it
//! goes on where that leads: a name belongs to the file that defines it. So a `pub use` is no dependency of its own.
//!
//! Not seen: a method, whose type has been named somewhere in most cases, and what a `*` brings, of which only the
//! module counts. In the arguments of macros, whatever looks like a path is one.

use crate::source::{Kind, Size, Source, SourceFile};
use proc_macro2::{TokenStream, TokenTree};
use std::collections::{BTreeMap, BTreeSet};
use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemUse, Macro, UseTree, Visibility};

type Path = Vec<String>;

/// As many names that only lead to another one are followed, in case they lead in a circle.
const FOLLOWED: usize = 16;

/// The groups of files that depend on each other, each as one.
pub fn cycles(source: &Source) -> Vec<Size> {
    let crates = Modules::new(source);
    let edges: BTreeMap<usize, BTreeSet<usize>> =
        source.files.iter().enumerate().map(|(i, file)| (i, crates.dependencies(i, file))).collect();
    let reach: BTreeMap<usize, BTreeSet<usize>> = edges.keys().map(|from| (*from, reachable(*from, &edges))).collect();
    let mut seen = BTreeSet::new();
    let mut cycles = Vec::new();
    for (from, to) in &reach {
        let circle: Vec<usize> = to.iter().copied().filter(|other| reach[other].contains(from)).collect();
        if circle.len() < 2 || !seen.insert(circle.clone()) {
            continue;
        }
        let names = circle.iter().map(|i| source.files[*i].name.as_str());
        cycles.push(Size {
            kind: Kind::Cycle,
            name: source.files[*from].name.clone(),
            value: circle.len(),
            detail: names.collect::<Vec<_>>().join(" "),
        });
    }
    cycles
}

/// What can be reached from a file, by one step or more.
fn reachable(from: usize, edges: &BTreeMap<usize, BTreeSet<usize>>) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    let mut left = vec![from];
    while let Some(next) = left.pop() {
        left.extend(edges[&next].iter().filter(|other| found.insert(**other)));
    }
    found
}

/// The modules of the crate.
struct Modules(BTreeMap<Path, Module>);

struct Module {
    /// The file that it is in.
    file: usize,
    /// Names that a `use` has brought, and what they stand for.
    names: BTreeMap<String, Path>,
}

impl Modules {
    fn new(source: &Source) -> Modules {
        let mut modules = Modules(BTreeMap::new());
        for (i, file) in source.files.iter().enumerate() {
            modules.add(i, &file.module, &file.items);
        }
        modules
    }

    fn add(&mut self, file: usize, path: &[String], items: &[Item]) {
        let mut names = BTreeMap::new();
        for item in items {
            match item {
                Item::Use(item) => names.extend(uses(item).into_iter().filter(|(name, _)| name != "*" && name != "_")),
                Item::Mod(item) => {
                    if let Some((_, inner)) = &item.content {
                        self.add(file, &[path, &[item.ident.to_string()]].concat(), inner);
                    }
                }
                _ => {}
            }
        }
        self.0.insert(path.to_vec(), Module { file, names });
    }

    /// The files that one depends on.
    fn dependencies(&self, file: usize, source: &SourceFile) -> BTreeSet<usize> {
        let mut named = Named { module: source.module.clone(), paths: Vec::new() };
        source.items.iter().for_each(|item| named.visit_item(item));
        let found = named.paths.iter().filter_map(|(from, path)| self.resolve(from, path, FOLLOWED));
        found.filter(|found| *found != file).collect()
    }

    /// The file in which a path ends that is written in a module; `None` where that is in no file of the crate.
    fn resolve(&self, from: &[String], path: &[String], steps: usize) -> Option<usize> {
        let (first, mut rest) = path.split_first()?;
        let mut at = match first.as_str() {
            "crate" => Vec::new(),
            "self" => from.to_vec(),
            "super" => from.split_last()?.1.to_vec(),
            _ => {
                rest = path;
                let is_known = self.0.contains_key(&[from, std::slice::from_ref(first)].concat());
                if !is_known && !self.0.get(from)?.names.contains_key(first) {
                    return None;
                }
                from.to_vec()
            }
        };
        while let Some((next, after)) = rest.split_first() {
            let inner = [&at[..], std::slice::from_ref(next)].concat();
            if next == "super" {
                at.pop();
            } else if self.0.contains_key(&inner) {
                at = inner;
            } else if let Some(elsewhere) = self.0.get(&at)?.names.get(next)
                && steps > 0
                && elsewhere.first() != Some(next)
            {
                return self.resolve(&at, &[elsewhere, after].concat(), steps - 1);
            } else {
                break;
            }
            rest = after;
        }
        self.0.get(&at).map(|module| module.file)
    }
}

/// The names that a `use` brings, with their paths.
fn uses(item: &ItemUse) -> Vec<(String, Path)> {
    let mut found = Vec::new();
    flatten(&item.tree, &[], &mut found);
    found
}

fn flatten(tree: &UseTree, before: &[String], found: &mut Vec<(String, Path)>) {
    let with = |name: &syn::Ident| match name.to_string() {
        name if name == "self" && !before.is_empty() => before.to_vec(),
        name => [before, &[name]].concat(),
    };
    match tree {
        UseTree::Path(path) => flatten(&path.tree, &[before, &[path.ident.to_string()]].concat(), found),
        UseTree::Name(name) => {
            let path = with(&name.ident);
            found.push((path.last().cloned().unwrap_or_default(), path));
        }
        UseTree::Rename(name) => found.push((name.rename.to_string(), with(&name.ident))),
        UseTree::Glob(_) => found.push(("*".into(), before.to_vec())),
        UseTree::Group(group) => group.items.iter().for_each(|tree| flatten(tree, before, found)),
    }
}

/// Collects the paths in a file, each with the module in which it is written.
struct Named {
    module: Path,
    paths: Vec<(Path, Path)>,
}

impl Named {
    fn push(&mut self, path: Path) {
        self.paths.push((self.module.clone(), path));
    }

    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Path = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Ident(ident) if colons == 2 && !path.is_empty() => {
                    path.push(ident.to_string());
                    colons = 0;
                }
                other => {
                    self.push(std::mem::take(&mut path));
                    colons = 0;
                    match other {
                        TokenTree::Ident(ident) => path.push(ident.to_string()),
                        TokenTree::Group(group) => self.tokens(group.stream()),
                        TokenTree::Punct(_) | TokenTree::Literal(_) => {}
                    }
                }
            }
        }
        self.push(path);
    }
}

impl<'ast> Visit<'ast> for Named {
    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.push(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        if let Visibility::Inherited = item.vis {
            uses(item).into_iter().for_each(|(_, path)| self.push(path));
        }
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_macro(&mut self, item: &'ast Macro) {
        self.visit_path(&item.path);
        self.tokens(item.tokens.clone());
    }

    // Who may see something, and attributes, name nothing that is used.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}

    fn visit_attribute(&mut self, _: &'ast Attribute) {}
}
