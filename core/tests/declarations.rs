//! Declarations that do not compile, and what the compiler says.

/// `TRYBUILD=overwrite cargo test -p qi-core --test declarations` writes the messages anew.
#[test]
fn a_wrong_declaration_is_explained() {
    trybuild::TestCases::new().compile_fail("tests/declarations/*.rs");
}
