//! Checks the catalog and stores it as JSON, which `config::catalog` reads.

#[path = "../core/src/catalog.rs"]
#[allow(dead_code, unused_imports, reason = "the build only parses")]
mod catalog;

fn main() {
    println!("cargo::rerun-if-changed=../../catalog.toml");
    println!("cargo::rerun-if-changed=../core/src/catalog.rs");
    println!("cargo::rerun-if-changed=../core/src/catalog");
    let text = std::fs::read_to_string("../../catalog.toml")
        .unwrap_or_else(|error| fail(&format!("catalog.toml: {error}")));
    let catalog = catalog::Catalog::parse(&text).unwrap_or_else(|error| fail(&error.to_string()));
    let json = serde_json::to_string(&catalog).unwrap_or_else(|error| fail(&error.to_string()));
    let place = std::env::var("OUT_DIR").unwrap_or_else(|error| fail(&error.to_string()));
    std::fs::write(format!("{place}/catalog.json"), json).unwrap_or_else(|error| fail(&error.to_string()));
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    std::process::exit(1)
}
