//! Refuses to build with a catalog that a function would refuse at start.

#[path = "src/domain/catalog.rs"]
#[allow(dead_code, reason = "the build only parses")]
mod catalog;

fn main() {
    println!("cargo::rerun-if-changed=../catalog.toml");
    println!("cargo::rerun-if-changed=src/domain/catalog.rs");
    let text = std::fs::read_to_string("../catalog.toml").unwrap_or_else(|error| fail(&format!("catalog.toml: {error}")));
    if let Err(error) = catalog::Catalog::parse(&text) {
        fail(&error.to_string());
    }
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    std::process::exit(1)
}
