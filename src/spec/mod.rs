//! `services.yaml`: raw mirror, validation, and the `Desired` model. Computes only.
