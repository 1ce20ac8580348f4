"""Instructions that point at the passage they were made from, which whoever holds the whole document does not see.

"The text", "the document" and "the story" may stay: in front of every instruction there is one. What may not is the
name of a part ("this excerpt", "the paragraph"), and whatever is said to stand above or to have been given.
"""

import re

_NOT_OF_TEXT = r"(?! (?:of|to|through|across|into|between|under|beneath|behind|beyond|along|leading)\b)"
_TEXTS_EN = (
    r"(?:text|document|article|story|book|chapter|section|context|content|information|material|paper|report|letter|"
    r"code|"
    r"dialogue|conversation|narrative|essay|sentences?|lines?|quotes?|statements?|details|source|table|data|poem)"
)
_GIVEN_EN = r"(?:given|provided|supplied|above|aforementioned|above-mentioned|following|preceding|previous|presented)"
_POINTING = {
    "en": (
        rf"\b(?:the|this|that|these|those|your|our|each)(?: {_GIVEN_EN}| short| brief| whole| entire| same)* "
        rf"(?:passages?|excerpts?|extracts?|snippets?|text passages?)\b{_NOT_OF_TEXT}|"
        rf"\b{_GIVEN_EN} (?:passage|excerpt|extract|snippet)s?\b|"
        rf"\b(?:the|this|that|these) (?:{_GIVEN_EN} |first |second |third |fourth |last |final |opening |closing |"
        rf"next |"
        r"previous |whole )*paragraphs?\b(?! (?:of|about|on|that|where|in which|\d))|"
        r"\b(?:this|these|that|current) (?:chunk|section|chapter|part of the (?:text|document|story|book))\b|"
        rf"\b(?:given|provided|supplied|above|aforementioned|above-mentioned|preceding) {_TEXTS_EN}\b|"
        rf"\bfollowing {_TEXTS_EN}\b(?![^.?!]*[:：\"“])|"
        rf"\b(?:{_TEXTS_EN}|events?|facts?|passages?|paragraphs?) (?:that (?:is|are|was|were) )?"
        r"(?:given|provided|supplied|above|presented)(?: here| above| below)?(?=\W*$|[,.;:?!)]|"
        r" (?:and|but|to|for|in|as|does|do|is|are|above|here|say)\b)|"
        r"\b(?:mentioned|described|listed|given|shown|discussed|stated|quoted|presented|provided|said|written) above\b|"
        r"\b(?:from|in|of|to|on) the above\b|\bthe above(?=[,.?!]|$)"
    ),
    "es": (
        r"\b(?:el|este|ese|del|al|dicho) (?:breve |siguiente |presente )?(?:pasaje|extracto|párrafo|fragmento)\b"
        r"(?! de(?:l| la| los| las)? (?!text|libro|document))|"
        r"\b(?:text|document|artícul|relat|historia|contenido|información)\w* (?:anterior|proporcionad|dad|siguiente|"
        r"presentad|de arriba|citad)\w*|\b(?:siguiente|anterior|presente) (?:texto|documento|artículo|relato)\b|"
        r"\bmencionad[oa]s? (?:arriba|anteriormente)"
    ),
    "fr": (
        r"\b(?:le|ce|du|au) (?:court |présent )?(?:passage|paragraphe)\b(?! (?:de|du|des|à|au|aux|vers|par|entre|"
        r"d')(?! "
        r"texte))|\b(?:l'|cet |d'un )extrait\b(?! de (?!texte))|\b(?:texte|document|article|récit|contenu|contexte) "
        r"(?:ci-dessus|précédent|fourni|donné|suivant|présenté)|(?:ci-dessus|susmentionné)"
    ),
    "de": (
        r"\b(?:der|die|dem|den|des|im|dies\w+|vom|am|zum) (?:obige\w* |gegebene\w* |kurze\w* |folgende\w* |"
        r"vorliegende\w* )?"
        r"(?:textabschnitt\w*|textauszug\w*|auszug\w*|textstelle\w*|textausschnitt\w*|ausschnitt\w*|textpassage\w*|"
        r"passage|"
        r"abschnitt\w*|absatz\w*)\b(?! (?:\d|von|der|des|über))|"
        r"\b(?:obige|gegebene|vorliegende|vorstehende|bereitgestellte|folgende)[nmrs]? (?:text|dokument|artikel|"
        r"geschichte|"
        r"inhalt|informationen|kontext)\w*|\b(?:text|dokument|artikel) oben\b|\boben (?:genannt|erwähnt|beschrieben)\w*"
    ),
    "pt": (
        r"\b(?:o|este|esse|neste|nesse|no|do|deste|desse|ao) (?:breve |seguinte )?(?:trecho|excerto|parágrafo|"
        r"fragmento)\b"
        r"(?! d[aeo]s? (?!texto|documento|livro))|\b(?:a|esta|essa|nesta|nessa|na|da|desta|dessa) passagem\b"
        r"(?! (?:d[aeo]s?|para|por) (?!texto|livro))|\b(?:texto|documento|artigo|conteúdo|contexto)s? (?:acima|"
        r"anterior|"
        r"fornecid|dad|seguinte|apresentad|a seguir)\w*|\b(?:mencionad|citad|descrit)\w+ acima"
    ),
    "it": (
        r"\b(?:il|questo|nel|del|dal|al|sul) (?:breve |seguente )?(?:brano|estratto|paragrafo)\b(?! (?:musicale|d[aei] "
        r"(?!testo)))|\b(?:questo passo|il passaggio|questo passaggio|nel passaggio|del passaggio|dal passaggio)\b"
        r"(?! (?:d[aei]l?l?[ao']?|a|al|tra|fra|verso)\b)|\b(?:testo|documento|articolo|racconto|contenuto|"
        r"contesto) (?:sopra|"
        r"precedente|fornito|dato|seguente|riportato|di cui sopra|presentato)|\b(?:seguente|presente|"
        r"precedente) (?:testo|"
        r"documento|brano)|\b(?:menzionat|citat|descritt)\w+ sopra"
    ),
    "ru": (
        r"\b(?:отрывок|отрывк(?:а|е|у|ом|ами?)|выдержк[аеиу])\b|\b(?:эт\w+|данн\w+|приведенн\w+|приведённ\w+|перв\w+|"
        r"последн\w+|предоставленн\w+|следующ\w+) (?:фрагмент|абзац|пассаж)\w*|\b(?:данн|приведенн|приведённ|"
        r"вышеприведенн|"
        r"вышеприведённ|предоставленн|представленн|вышеуказанн)\w+ (?:текст|документ|стать|рассказ|информаци)\w*|"
        r"\b(?:текст|документ|стать)\w* выше\b|\bвыше(?:описанн|указанн|упомянут|сказанн)\w+|\bупомянут\w+ выше"
    ),
    "zh": (
        r"[这這该該本此那上][一个個]?(?:段|段落|片段|节选|節選|选段|選段|篇章节)(?:文字|文本|文章|话|話|内容|內容|"
        r"材料|叙述|描述|中|里|裡|的|，|$)|"
        r"[本该該此]段(?![时時历歷路旅经經关關距感岁歲])|"
        r"(?:上述|以上|上面|所给|所給|给出的|给定的?|提供的|下面的?|以下|前述|上列)(?:的|这段|的这段|一段)?(?:段落|"
        r"文字|文本|文章|文档|文檔|"
        r"内容|內容|材料|信息|短文|片段|资料|資料)|段落[中里裡]|根据段落|上文|节选|節選|选段|選段|摘录|摘錄|文章片段|"
        r"文本片段"
    ),
    "ja": (
        r"(?:この|その|本|上の|上記の|以下の|次の|与えられた|提示された)(?:段落|一節|抜粋|箇所|パッセージ|引用|"
        r"部分の文章)|"
        r"(?:上の|上記の|以下の|次の|与えられた|提示された|提供された)(?:文章|文書|テキスト|文|本文|内容|資料|情報)|"
        r"抜粋(?:で|に|から|の|を)|"
        r"パッセージ|上記"
    ),
    "ko": (
        r"(?:이|위|위의|주어진|제시된|다음|본|해당) ?(?:지문|단락|발췌문|발췌|구절|문단|대목)|(?:위|위의|주어진|"
        r"제시된|제공된|다음|상기) ?"
        r"(?:글|텍스트|본문|문서|내용|이야기|기사|자료|정보)|지문(?:에|의|을|은)|발췌문"
    ),
    "ar": (
        r"(?:^|\s)(?:في |من |إلى |على )?(?:هذا |هذه |ل|ب|و)*(?:ال|لل)(?:مقطع|فقرة|مقتطف|اقتباس)(?! (?:\d|الموسيقي))|"
        r"النص (?:أعلاه|المقدم|المعطى|السابق|التالي|المذكور|المرفق)|(?:المذكور|الوارد)ة? أعلاه"
    ),
}
_PATTERN = re.compile("|".join(f"(?:{pattern})" for pattern in _POINTING.values()), re.IGNORECASE)
_TEXT = re.compile(
    r"\b(?:texts?|documents?|passages?|articles?|excerpts?|stor(?:y|ies)|chapters?|book|documentos?|textos?|artículos?|"
    r"documento|testo|textes?|récit|dokument\w*|text(?:es|en)?|geschichte|artikel|документ\w*|текст\w*|стать\w*)\b|"
    r"文档|文檔|文本|文章|文中|本文|文書|テキスト|문서|본문|글[에의을은]|텍스트|النص|المستند|المقال",
    re.IGNORECASE,
)
# "The Northwest Passage": a name, not a noun.
_NAME = re.compile(r"\b(?!(?:The|This|That|A)\b)[A-Z]\w+ Passage\b")


def points_at_passage(text: str) -> bool:
    """Whether a text names the passage, or what stands above, as something that its reader has before them."""
    return _PATTERN.search(_NAME.sub("", text.replace("’", "'"))) is not None


def names_text(text: str) -> bool:
    """Whether a text names the document, the article or the like, by a noun for what can be read."""
    return _TEXT.search(text) is not None
