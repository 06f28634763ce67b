use proc_macro2::TokenStream;
use quote::{format_ident, quote, quote_spanned};
use syn::ext::IdentExt as _;
use syn::spanned::Spanned as _;
use syn::{DeriveInput, Field, Result};

/// Returns the name of a field's column.
pub(crate) fn name_of(field: &Field) -> String {
    field.ident.as_ref().map(|ident| ident.unraw().to_string()).unwrap_or_default()
}

/// Returns the description of a field's column.
pub(crate) fn column(field: &Field) -> TokenStream {
    let (name, ty) = (name_of(field), &field.ty);
    let value = quote_spanned!(ty.span() => <#ty as ::qi_core::record::ColumnValue>);
    quote! {
        ::qi_core::record::Column { name: #name, ty: #value::TYPE, optional: #value::OPTIONAL }
    }
}

pub(crate) fn expand(input: &DeriveInput) -> Result<TokenStream> {
    let fields = crate::named_fields(input, "a group of columns")?;
    let ident = &input.ident;
    let columns = fields.iter().map(column);
    let names: Vec<_> = fields.iter().filter_map(|field| field.ident.clone()).collect();
    let locals: Vec<_> = names.iter().map(|name| format_ident!("field_{}", name.unraw())).collect();
    let labels = fields.iter().map(name_of);
    let value = quote!(::qi_core::record::ColumnValue);
    Ok(quote! {
        impl ::qi_core::record::Columns for #ident {
            const COLUMNS: &'static [::qi_core::record::Column] = &[#(#columns),*];

            fn write<W: ::qi_core::record::FieldWriter + ?Sized>(&self, out: &mut W) {
                #(#value::write(&self.#names, out);)*
            }
            fn read<F: ::qi_core::record::FieldReader + ?Sized>(fields: &mut F) -> ::qi_core::Result<Self> {
                #(let #locals = #value::read(fields)?;)*
                ::core::result::Result::Ok(Self { #(#names: #locals),* })
            }
            fn check(&self) -> ::qi_core::Result<()> {
                #(#value::check(&self.#names, #labels)?;)*
                ::core::result::Result::Ok(())
            }
        }
    })
}
