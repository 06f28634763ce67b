use proc_macro2::TokenStream;
use quote::quote;
use syn::{Data, DeriveInput, Error, Result};

pub(crate) fn expand(input: &DeriveInput) -> Result<TokenStream> {
    let ident = &input.ident;
    let Data::Enum(data) = &input.data else {
        return Err(Error::new_spanned(ident, "an enumeration is an enum"));
    };
    if let Some(variant) = data.variants.iter().find(|variant| !variant.fields.is_empty()) {
        return Err(Error::new_spanned(variant, "a variant of an enumeration has no fields"));
    }
    if !(1..=100).contains(&data.variants.len()) {
        return Err(Error::new_spanned(ident, "an enumeration has from 1 to 100 variants"));
    }
    let variants: Vec<_> = data.variants.iter().map(|variant| &variant.ident).collect();
    let names = variants.iter().map(|variant| snake_case(&variant.to_string()));
    let codes: Vec<_> = (1..=100_u8).take(variants.len()).collect();
    Ok(quote! {
        impl ::qi_core::record::Enumeration for #ident {
            const NAMES: &'static [&'static str] = &[#(#names),*];

            fn code(self) -> u8 {
                match self {
                    #(Self::#variants => #codes,)*
                }
            }
            fn from_code(code: u8) -> ::core::option::Option<Self> {
                match code {
                    #(#codes => ::core::option::Option::Some(Self::#variants),)*
                    _ => ::core::option::Option::None,
                }
            }
        }

        impl ::qi_core::record::ColumnValue for #ident {
            const TYPE: ::qi_core::record::ColumnType =
                ::qi_core::record::ColumnType::Enumeration(<Self as ::qi_core::record::Enumeration>::NAMES);

            fn write<W: ::qi_core::record::FieldWriter + ?Sized>(&self, out: &mut W) {
                out.code(::qi_core::record::Enumeration::code(*self));
            }
            fn read<F: ::qi_core::record::FieldReader + ?Sized>(fields: &mut F) -> ::qi_core::Result<Self> {
                ::qi_core::record::macros::enumeration(fields.code()?)
            }
        }
    })
}

fn snake_case(name: &str) -> String {
    let mut text = String::new();
    for (at, c) in name.char_indices() {
        if at > 0 && c.is_uppercase() {
            text.push('_');
        }
        text.extend(c.to_lowercase());
    }
    text
}
