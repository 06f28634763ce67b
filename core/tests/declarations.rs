//! Declarations that do not compile, and the compiler's messages.

/// `TRYBUILD=overwrite cargo test -p qi-core --test declarations` rewrites the expected messages.
#[test]
fn a_wrong_declaration_is_explained() {
    trybuild::TestCases::new().compile_fail("tests/declarations/*.rs");
}
