//! The files below `src`, parsed, and the sizes of what is in them.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{
    Attribute, Fields, ImplItemFn, Item, ItemEnum, ItemFn, ItemImpl, ItemMod, ItemStruct, Signature, TraitItemFn,
};

/// What has a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// All lines together.
    Lines,
    /// A file, in lines.
    File,
    /// A function, in lines.
    Function,
    /// A struct or a variant, in fields.
    Struct,
    /// Files that depend on each other, in files.
    Cycle,
}

impl Kind {
    /// All of them, in the order in which they are printed.
    pub const ALL: [Kind; 5] = [Kind::Lines, Kind::File, Kind::Function, Kind::Struct, Kind::Cycle];

    /// The largest size that is allowed outside the list of exceptions, where all lines together always stand.
    pub fn limit(self) -> usize {
        match self {
            Kind::Lines | Kind::Cycle => 0,
            Kind::File => 400,
            Kind::Function => 60,
            Kind::Struct => 12,
        }
    }

    /// For a heading.
    pub fn plural(self) -> &'static str {
        match self {
            Kind::Lines => "lines",
            Kind::File => "files, in lines",
            Kind::Function => "functions, in lines",
            Kind::Struct => "structs and variants, in fields",
            Kind::Cycle => "cycles, in files",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Lines => "lines",
            Kind::File => "file",
            Kind::Function => "function",
            Kind::Struct => "struct",
            Kind::Cycle => "cycle",
        })
    }
}

/// One figure.
#[derive(Debug)]
pub struct Size {
    /// What was measured.
    pub kind: Kind,
    /// Its name in the list of exceptions.
    pub name: String,
    /// Its size.
    pub value: usize,
    /// More about it, for people.
    pub detail: String,
}

/// The source of the program, without its tests.
pub struct Source {
    /// Its files, ordered by name.
    pub files: Vec<SourceFile>,
}

/// A file of it.
pub struct SourceFile {
    /// Its path from the root of the project.
    pub name: String,
    /// The path of its module: empty for that of the crate.
    pub module: Vec<String>,
    /// What is in it, with the tests taken out.
    pub items: Vec<Item>,
    /// Its lines without those of its tests.
    pub lines: usize,
    /// Those of them that are neither blank nor only a comment.
    pub code: usize,
}

impl Source {
    /// Reads all files below `src`.
    pub fn read(root: &Path) -> Result<Source, String> {
        let mut paths = Vec::new();
        list(&root.join("src"), &mut paths).map_err(|e| format!("unable to list src: {e}"))?;
        paths.sort();
        let mut files = Vec::new();
        let mut tests = Vec::new();
        for path in paths {
            let fault = |e: &dyn fmt::Display| format!("unable to read {}: {e}", path.display());
            let text = std::fs::read_to_string(&path).map_err(|e| fault(&e))?;
            let mut parsed = syn::parse_file(&text).map_err(|e| fault(&e))?;
            let module = module_path(path.strip_prefix(root.join("src")).map_err(|e| fault(&e))?);
            let mut cut = Cut::default();
            cut.items(&mut parsed.items, &module);
            tests.append(&mut cut.modules);
            let name = path.strip_prefix(root).map_err(|e| fault(&e))?.display().to_string();
            let kept = || text.lines().enumerate().filter(|(i, _)| !cut.lines.contains(&(i + 1)));
            let code = kept().filter(|(_, line)| !line.trim().is_empty() && !line.trim().starts_with("//")).count();
            files.push(SourceFile { name, module, items: parsed.items, lines: kept().count(), code });
        }
        files.retain(|file| !tests.iter().any(|test| file.module.starts_with(test)));
        Ok(Source { files })
    }

    /// The sizes of the files and of what is in them.
    pub fn sizes(&self) -> Vec<Size> {
        let size = |kind, name: &str, value| Size { kind, name: name.to_owned(), value, detail: String::new() };
        let code: usize = self.files.iter().map(|file| file.code).sum();
        let all = size(Kind::Lines, "src", self.files.iter().map(|file| file.lines).sum());
        let mut sizes = vec![Size { detail: format!("{code} of them neither blank nor comment"), ..all }];
        for file in &self.files {
            sizes.push(size(Kind::File, &file.name, file.lines));
            let mut measure = Measure { file: &file.name, owner: String::new(), sizes: Vec::new() };
            file.items.iter().for_each(|item| measure.visit_item(item));
            sizes.append(&mut measure.sizes);
        }
        sizes
    }
}

/// The Rust files of a folder and of those below it, without tests.
fn list(folder: &Path, paths: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let is_named = |name: &str| path.file_name().is_some_and(|file| file == name);
        if path.is_dir() && !is_named("tests") {
            list(&path, paths)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") && !is_named("tests.rs") {
            paths.push(path);
        }
    }
    Ok(())
}

/// The path of the module that is in this file: `a::b` for `a/b.rs` and for `a/b/mod.rs`.
fn module_path(path: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        path.with_extension("").iter().map(|name| name.to_string_lossy().into_owned()).collect();
    if names.last().is_some_and(|name| name == "mod") || names == ["main"] {
        names.pop();
    }
    names
}

/// Takes the tests out of a file.
#[derive(Default)]
struct Cut {
    /// The lines of the tests.
    lines: BTreeSet<usize>,
    /// The modules that are tests and have a file of their own.
    modules: Vec<Vec<String>>,
}

impl Cut {
    fn items(&mut self, items: &mut Vec<Item>, module: &[String]) {
        items.retain_mut(|item| {
            let is_cut = is_test(attributes(item));
            if is_cut {
                self.remove(item);
            }
            match item {
                Item::Mod(ItemMod { ident, content, .. }) => {
                    let inner = [module, &[ident.to_string()]].concat();
                    match content {
                        Some((_, items)) if !is_cut => self.items(items, &inner),
                        None if is_cut => self.modules.push(inner),
                        Some(_) | None => {}
                    }
                }
                Item::Impl(block) => block.items.retain(|item| match item {
                    syn::ImplItem::Fn(function) if is_test(&function.attrs) => {
                        self.remove(function);
                        false
                    }
                    _ => true,
                }),
                _ => {}
            }
            !is_cut
        });
    }

    fn remove(&mut self, test: &impl Spanned) {
        let span = test.span();
        self.lines.extend(span.start().line..=span.end().line);
    }
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg") && attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// Finds the functions and the structs of a file.
struct Measure<'a> {
    file: &'a str,
    /// The type that the functions of a block belong to.
    owner: String,
    sizes: Vec<Size>,
}

impl Measure<'_> {
    fn function(&mut self, signature: &Signature, end: proc_macro2::Span) {
        let lines = end.end().line - signature.span().start().line + 1;
        self.push(Kind::Function, &format!("{}{}", self.owner, signature.ident), lines);
    }

    fn fields(&mut self, name: &str, fields: &Fields) {
        self.push(Kind::Struct, name, fields.len());
    }

    fn push(&mut self, kind: Kind, name: &str, value: usize) {
        self.sizes.push(Size { kind, name: format!("{} {name}", self.file), value, detail: String::new() });
    }
}

impl<'ast> Visit<'ast> for Measure<'_> {
    fn visit_item_fn(&mut self, item: &'ast ItemFn) {
        self.function(&item.sig, item.block.span());
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast ImplItemFn) {
        self.function(&item.sig, item.block.span());
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast TraitItemFn) {
        if let Some(block) = &item.default {
            self.function(&item.sig, block.span());
        }
        visit::visit_trait_item_fn(self, item);
    }

    fn visit_item_impl(&mut self, item: &'ast ItemImpl) {
        let last = |path: &syn::Path| path.segments.last().map(|last| last.ident.to_string()).unwrap_or_default();
        let mut owner = match &*item.self_ty {
            syn::Type::Path(of) => last(&of.path) + "::",
            _ => String::new(),
        };
        if let Some((of, _)) = &item.trait_ {
            owner += &(last(of) + "::");
        }
        let outer = std::mem::replace(&mut self.owner, owner);
        visit::visit_item_impl(self, item);
        self.owner = outer;
    }

    fn visit_item_struct(&mut self, item: &'ast ItemStruct) {
        self.fields(&item.ident.to_string(), &item.fields);
    }

    fn visit_item_enum(&mut self, item: &'ast ItemEnum) {
        for variant in &item.variants {
            self.fields(&format!("{}::{}", item.ident, variant.ident), &variant.fields);
        }
    }
}
