-- Commitments and credits are kinds of lines too.
ALTER TABLE invoice_lines
    COMMENT COLUMN kind 'charge, discount, prepayment, prepaid, true_up, overage, credit, included_tax, tax';
